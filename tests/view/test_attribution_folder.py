"""An attribution's folder says what the map says, beside a run and without touching it."""

import json
from dataclasses import replace

import pytest
import torch

import llava_probe as lp
from llava_probe.view.folder import write_attribution, write_run
from tests.synthetic import TEXTS, causal, synthetic_trace


@pytest.fixture
def trace():
    logits = torch.randn(4, len(TEXTS), generator=torch.Generator().manual_seed(0))
    return synthetic_trace(attention=causal(), logits=logits)


@pytest.fixture
def m(trace):
    """Attention's map, with a weight for each other token that grows and changes its sign."""
    plain = lp.attention_map(trace)
    others = tuple(token for token in trace.tokens[:-1] if token.role != "image")
    weights = torch.arange(len(others)) * (-1.0) ** torch.arange(len(others))
    return replace(
        plain, about={"unit": "share", "heads": (1, 2)}, text=weights.expand(len(plain), -1), text_tokens=others
    )


def test_the_folder_holds_what_the_map_says(trace, m, tmp_path):
    written = write_attribution(trace, m, tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(written)
    told = json.loads((tmp_path / "attribution.json").read_text())
    assert (told["method"], told["answer"], told["about"]["unit"]) == (m.method, trace.answer, "share")
    assert [row["word"] for row in told["rows"]] == [token.text for token in m.tokens]
    assert [tuple(row["peak"]) for row in told["rows"]] == [m.peak(row) for row in range(len(m))]
    assert lp.ImageMap.load(tmp_path / "attribution").values.equal(m.values)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"attribution.png", "words.png"}


def test_the_heaviest_words_are_those_of_the_largest_size_with_their_sign(trace, m, tmp_path):
    pairs = zip(m.text[0].tolist(), m.text_tokens, strict=True)
    started = {trace.prompt_length - 1, trace.prompt_length}  # of " ST" and "OP": there relevance starts
    m = replace(m, about={**m.about, "positions": [[10, 11], [12]]})
    write_attribution(trace, m, tmp_path)
    expected = sorted((pair for pair in pairs if pair[1].position not in started), key=lambda pair: -abs(pair[0]))[:5]
    found = json.loads((tmp_path / "attribution.json").read_text())["rows"][0]["text"]
    assert [(each["weight"], each["position"]) for each in found] == [(w, token.position) for w, token in expected]
    assert {w < 0 for w, _ in expected} == {True, False}


def test_a_map_of_the_picture_alone_has_no_words_beside_it(trace, m, tmp_path):
    alone = replace(m, text=None, text_tokens=())
    assert alone.words(0) == ()
    write_attribution(trace, alone, tmp_path)
    assert json.loads((tmp_path / "attribution.json").read_text())["rows"][0]["text"] == []


def test_run_and_attribution_share_a_folder(trace, m, tmp_path):
    """Whichever is written first or again, the other's files stay as they are."""
    of_run = {path: path.read_bytes() for path in write_run(trace, tmp_path)}
    of_map = {path: path.read_bytes() for path in write_attribution(trace, m, tmp_path)}
    assert not set(of_run) & set(of_map)
    assert all(path.read_bytes() == held for path, held in of_run.items())
    write_run(trace, tmp_path, maps=False)
    assert all(path.read_bytes() == held for path, held in of_map.items())


def test_words_of_an_earlier_attribution_go(trace, m, tmp_path):
    write_attribution(trace, m, tmp_path)
    fewer = replace(m, values=m.values[:1], tokens=m.tokens[:1], text=m.text[:1])
    written = write_attribution(trace, fewer, tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(written)


def test_a_file_that_cannot_be_written_is_told_by_its_name(trace, m, tmp_path):
    (tmp_path / "attribution.json").mkdir()
    with pytest.raises(lp.BadFile, match=r"could not be written to .*attribution\.json"):
        write_attribution(trace, m, tmp_path)
