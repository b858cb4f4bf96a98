"""A bank is made of anybody's sentences, goes on where it was killed, and says what it cannot be made of."""

import hashlib
from pathlib import Path

import pytest
import torch

import llava_probe as lp
from llava_probe.features import store
from llava_probe.lens.word_bank import spread
from tests.models import llava_processor, random_llava

SENTENCES = [
    f"There is a {colour} {kind} on the road." for colour in ("red", "white") for kind in ("dog", "car", "sign")
]


@pytest.fixture(scope="module")
def vlm() -> lp.VLM:
    return lp.VLM(random_llava(), llava_processor())


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_killed_run_goes_on_and_leaves_the_same_bytes(vlm, tmp_path, monkeypatch):
    monkeypatch.setattr("llava_probe.features.extract.SHARD_BYTES", 6_000)
    asked = {"layers": [1, 2], "batch_size": 2}
    whole = lp.word_bank(vlm, SENTENCES, tmp_path / "whole", **asked)
    assert len(whole.features.manifest["shards"]) > 2
    written, write = [], store.write_shard

    def killed(*args, **kwargs):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(write(*args, **kwargs))

    monkeypatch.setattr(store, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        lp.word_bank(vlm, SENTENCES, tmp_path / "killed", **asked)
    with pytest.raises(lp.BadFile, match="did not end; the same word_bank call goes on"):
        lp.WordBank(tmp_path / "killed")
    monkeypatch.setattr(store, "write_shard", write)
    again = lp.word_bank(vlm, SENTENCES, tmp_path / "killed", **asked)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert again.contexts == whole.contexts


def test_what_is_kept_is_what_one_pass_over_the_sentence_computes(vlm, tmp_path):
    bank = lp.word_bank(vlm, SENTENCES, tmp_path / "bank", layers=[2])
    tokenizer = vlm.processor.tokenizer
    for row in (0, len(bank) - 1):
        context = bank.contexts[row]
        ids = tokenizer(context.sentence[: context.stop], return_tensors="pt").input_ids
        with torch.no_grad():
            alone = vlm.model(input_ids=ids, output_hidden_states=True).hidden_states[2][0, -1]
        assert torch.allclose(bank.states(2)[row], alone, atol=1e-5)


def test_a_model_by_name_and_a_file_of_lines_do(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("There is a red star at the top.\nIs it white?\n")
    bank = lp.word_bank("tiny", path, tmp_path / "bank", dtype="bfloat16")
    assert bank.layers == (1, 2, 3, 4, 5) and bank.states(3).dtype == torch.bfloat16
    assert bank.vocabulary.keys() >= {"red", "star", "white"}
    vlm = lp.load(dtype="bfloat16")
    trace = vlm.generate(lp.tiny.scene(7).image, "What?", max_new_tokens=1, capture=lp.Capture(positions="image"))
    assert bank.words(trace, layer=3).similarity.dtype == torch.float32


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(32, [1, 2, 4, 8, 16, 24, 30, 31]), (6, [1, 2, 3, 4, 5]), (2, [1]), (1, [1])],
    ids=["7B", "tiny", "two", "one"],
)
def test_layers_lie_over_the_whole_depth(depth, layers):
    class Anatomy:
        pass

    Anatomy.layers = depth
    assert spread(Anatomy) == layers


@pytest.mark.parametrize(
    ("sentences", "settings", "error", "told"),
    [
        ([], {}, lp.BadInput, "there is no sentence"),
        (["", "  "], {}, lp.BadInput, "there is no sentence"),
        (["a", "?"], {}, lp.BadInput, "2 sentences and no word behind the first two tokens"),
        (["What is <image> here?"], {}, lp.BadInput, "none of 1 sentences can be read, the first: .*<image>"),
        (SENTENCES, {"layers": [9]}, lp.OutOfRange, "layer 9 is not there: this model has 0 to 4"),
        (SENTENCES, {"layers": []}, lp.BadInput, r"layers=\[\] keeps nothing"),
        (SENTENCES, {"contexts": 0}, lp.BadInput, "contexts=.* takes a whole number from 1"),
        (SENTENCES, {"dtype": "float32"}, lp.BadInput, "dtype: for loading a model by name"),
    ],
    ids=["none", "empty", "too-short", "unreadable", "layer", "no-layers", "no-contexts", "loaded"],
)
def test_what_no_bank_can_be_made_of_is_told(vlm, tmp_path, sentences, settings, error, told):
    with pytest.raises(error, match=told):
        lp.word_bank(vlm, sentences, tmp_path / "bank", **settings)


def test_another_bank_in_the_folder_is_not_written_over(vlm, tmp_path):
    lp.word_bank(vlm, SENTENCES, tmp_path / "bank", layers=[1])
    before = digests(tmp_path / "bank")
    with pytest.raises(lp.BadInput, match="made of other samples"):
        lp.word_bank(vlm, [*SENTENCES[:5], "There is a red car here."], tmp_path / "bank", layers=[1])
    with pytest.raises(lp.BadInput, match="made with other settings"):
        lp.word_bank(vlm, SENTENCES, tmp_path / "bank", layers=[2])
    assert digests(tmp_path / "bank") == before


def test_sentences_and_contexts_that_are_left_out_are_told(vlm, tmp_path):
    with pytest.warns(UserWarning) as told:
        lp.word_bank(vlm, ["What is <image> here?", *SENTENCES], tmp_path / "bank", layers=[1], most=4)
    words = " ".join(str(each.message) for each in told)
    assert "1 of 7 sentences were left out, the first: " in words and "contexts beyond most=4 were left out" in words
