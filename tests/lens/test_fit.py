"""A tuned lens leaves alone what need not move, finds what was planted, and belongs to its model."""

import json
import re

import pytest
import torch

import llava_probe as lp
from llava_probe.lens import fitting
from tests.models import llava_processor, photo, random_llava

QUESTIONS = ("what is the text on the stop sign", "is there a red star", "where is the sign and what does it say")


def rows(pictures, questions=QUESTIONS):
    return [{"image": photo(seed=seed), "question": words} for seed in range(pictures) for words in questions]


def still():
    """A random model whose blocks change nothing."""
    model = random_llava()
    for block in model.model.language_model.layers:
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    return lp.VLM(model, llava_processor())


def test_where_layers_change_nothing_it_stays_at_the_identity(tmp_path):
    tuned = lp.fit_lens(still(), rows(4), tmp_path, batch_size=3, lr=0.1)
    for layer in tuned.layers:
        for matrix, bias in tuned.translator(layer).values():
            assert not matrix.any() and not bias.any()
    assert {row.tuned for row in tuned.report.rows} == {row.logit for row in tuned.report.rows}


def test_it_finds_a_planted_affine_change(tmp_path):
    """What the last block does to every state: h + M h + c. The scale of a state is lost in the norm."""
    vlm, drawn = still(), torch.Generator().manual_seed(0)
    matrix, bias = torch.randn(64, 64, generator=drawn) / 32, torch.randn(64, generator=drawn) / 10
    last = vlm.model.model.language_model.layers[3]
    last.forward = lambda hidden_states, **_: hidden_states + hidden_states @ matrix.T + bias
    few = rows(10, QUESTIONS[:1])
    tuned = lp.fit_lens(vlm, few, tmp_path, layers=[1], batch_size=1, steps=200, lr=0.008, held_out=0.25)
    for row in tuned.report.rows:
        assert row.logit > 0.05 and row.tuned < 1e-3
        assert 0 < row.low <= row.gain + 1e-9 and row.gain <= row.high + 1e-9


def test_words_and_visual_tokens_have_translators_of_their_own(tmp_path):
    vlm = lp.VLM(random_llava(), llava_processor())
    tuned = lp.fit_lens(vlm, rows(4), tmp_path, layers=[-3], steps=3, held_out=0)
    states, visual = torch.randn(4, 64), torch.tensor([True, False, True, False])
    moved = tuned.translate(states, 2, visual)
    for kind, chosen in (("visual", visual), ("text", ~visual)):
        matrix, bias = tuned.translator(2)[kind]
        torch.testing.assert_close(moved[chosen], states[chosen] @ (torch.eye(64) + matrix).T + bias)
    assert not tuned.report.rows and set(tuned.losses[0]) == {"step", "text", "visual"}
    trace = vlm.generate(photo(), QUESTIONS[0], max_new_tokens=1, capture=lp.Capture(positions="all"))
    read = lp.lens(vlm, trace, layers=[2, 4], at=lp.ALL, tuned=tuned)
    hand = torch.tensor([token.role == "image" for token in read.tokens])
    inside = vlm.model.model.language_model
    logits = vlm.model.lm_head(inside.norm(tuned.translate(trace.hidden(layer=2, at=lp.ALL), 2, hand)))
    torch.testing.assert_close(read.probability[0, :, 0], logits.softmax(-1).amax(-1).detach(), atol=1e-6, rtol=1e-5)
    assert lp.lens(vlm, trace, tuned=tuned).layers == (2, 4)  # all that it has, and the last
    with pytest.raises(lp.OutOfRange, match="layer 1 has no translator in this tuned lens, only 2"):
        lp.lens(vlm, trace, layers=1, tuned=tuned)
    plain = lp.lens(vlm, trace, layers=[4], at=lp.ALL)
    assert torch.equal(read.probability[1], plain.probability[0])  # the last state needs no translator


def test_a_run_that_was_broken_off_ends_as_an_undisturbed_one(tmp_path, monkeypatch):
    vlm, asked = lp.VLM(random_llava(), llava_processor()), {"steps": 5, "batch_size": 3, "tokens": 6}
    whole = lp.fit_lens(vlm, rows(4), tmp_path / "whole", **asked)
    monkeypatch.setattr(fitting, "EVERY", 0.0)
    step, broken = fitting.Adam.step, []

    def breaking(self):
        if len(broken) == 3:
            raise KeyboardInterrupt
        broken.append(None)
        return step(self)

    monkeypatch.setattr(fitting.Adam, "step", breaking)
    with pytest.raises(KeyboardInterrupt):
        lp.fit_lens(vlm, rows(4), tmp_path / "again", **asked)
    with pytest.raises(lp.BadFile, match="did not end"):
        lp.TunedLens.load(tmp_path / "again")
    monkeypatch.setattr(fitting.Adam, "step", step)
    again = lp.fit_lens(vlm, rows(4), tmp_path / "again", **asked)
    for layer in whole.layers:
        for kind, parts in whole.translator(layer).items():
            assert all(map(torch.equal, parts, again.translator(layer)[kind]))
    assert whole.report.rows == again.report.rows and whole.losses == again.losses
    assert not (tmp_path / "again" / fitting.CHECKPOINT).exists()
    told = (tmp_path / "whole" / "tuned_lens.json").read_bytes()
    assert (tmp_path / "again" / "tuned_lens.json").read_bytes() == told
    assert lp.fit_lens(vlm, rows(4), tmp_path / "whole", **asked).report.rows == whole.report.rows  # nothing runs again
    assert (tmp_path / "whole" / "tuned_lens.json").read_bytes() == told
    with pytest.raises(lp.BadInput, match="holds another run: lr"):
        lp.fit_lens(vlm, rows(4), tmp_path / "whole", lr=0.5, **asked)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    vlm = lp.VLM(random_llava(), llava_processor())
    return vlm, lp.fit_lens(vlm, rows(2), tmp_path_factory.mktemp("tuned"), steps=1, held_out=0.5)


def test_it_is_refused_by_another_model(fitted):
    _, tuned = fitted
    other = lp.VLM(random_llava(seed=1), llava_processor())
    trace = other.generate(photo(), QUESTIONS[0], max_new_tokens=1)
    with pytest.raises(lp.BadInput, match="this tuned lens was fitted to another model \\(weights"):
        lp.lens(other, trace, tuned=tuned)
    halved = lp.VLM(random_llava().to(torch.bfloat16), llava_processor())
    with pytest.raises(lp.BadInput, match=re.escape('dtype: "float32" | "bfloat16"')):
        tuned.check(halved)


def naive(vlm, seed, layer):
    """KL(last ‖ layer) at words and at visual tokens, mean over what is asked about one picture, from whole logits."""
    sums, counts = {"text": 0.0, "visual": 0.0}, {"text": 0, "visual": 0}
    for words in QUESTIONS:
        trace = vlm.generate(photo(seed=seed), words, max_new_tokens=1, capture=lp.Capture(positions="all"))
        head, norm = vlm.model.lm_head, vlm.model.model.language_model.norm
        with torch.no_grad():
            own = head(trace.hidden(layer=-1, at=lp.ALL)).double().softmax(-1)
            said = head(norm(trace.hidden(layer=layer, at=lp.ALL))).double().softmax(-1)
        for row, token in enumerate(trace.tokens[:-1]):
            kind = "visual" if token.role == "image" else "text"
            sums[kind] += float((own[row] * (own[row] / said[row]).log()).sum())
            counts[kind] += 1
    return [sums[kind] / counts[kind] for kind in sums]


def test_held_out_figures_are_those_of_whole_logits(fitted):
    """Of the one picture that was held out, whichever it is."""
    vlm, tuned = fitted
    told = [row.logit for row in tuned.report.rows if row.layer == 2]
    assert any(told == pytest.approx(naive(vlm, seed, 2), rel=1e-4) for seed in (0, 1))


def test_its_figures_are_a_table(fitted):
    _, tuned = fitted
    assert tuned.report.pictures == 1
    columns = tuned.report.to_dict()
    assert columns["layer"] == [0, 0, 1, 1, 2, 2, 3, 3] and columns["kind"] == ["text", "visual"] * 4
    assert tuned.report.curve("visual") == [(row.layer, row.tuned) for row in tuned.report.rows if row.kind == "visual"]
    with pytest.raises(lp.BadInput, match="kind= takes"):
        tuned.report.curve("image")


def test_a_damaged_folder_is_one_sentence(fitted, tmp_path):
    _, tuned = fitted
    for path in tuned.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    held = tmp_path / "layer_2.safetensors"
    held.write_bytes(held.read_bytes()[:-1] + b"x")
    with pytest.raises(lp.BadFile, match="checksum"):
        lp.TunedLens.load(tmp_path).translator(2)
    held.unlink()
    with pytest.raises(lp.BadFile, match="the translators of layer 2 are gone"):
        lp.TunedLens.load(tmp_path)
    told = json.loads((tmp_path / "tuned_lens.json").read_text())
    (tmp_path / "tuned_lens.json").write_text(json.dumps({**told, "surprise": 1}))
    with pytest.raises(lp.BadFile, match="no tuned lens, or a damaged one"):
        lp.TunedLens.load(tmp_path)


def test_a_sample_that_cannot_be_read_is_left_out_and_told(tmp_path):
    vlm = lp.VLM(random_llava(), llava_processor())
    bad = {"image": str(tmp_path / "gone.png"), "question": "what is it"}
    with pytest.warns(UserWarning, match="1 samples were left out, the first: row 6"):
        tuned = lp.fit_lens(vlm, [*rows(2), bad], tmp_path / "tuned", held_out=0, batch_size=7)
    assert len(tuned.left_out) == 1 and "gone.png" in tuned.left_out[0]


@pytest.mark.parametrize(
    ("data", "given", "sentence"),
    [
        (rows(1), {}, "of 1 pictures leaves none to fit"),
        (rows(3), {"layers": []}, "layers= names no layer"),
        (rows(3), {"layers": [5]}, "hidden state 5 is not there: this model has 0 to 4"),
        (rows(3), {"layers": [4]}, "hidden state 4 is the last"),
        (rows(3), {"layers": -1}, "hidden state 4 is the last"),
        ([{"image": "gone.png", "question": "what"}], {"held_out": 0}, "no sample could be read: row 0"),
    ],
)
def test_what_cannot_be_fitted_is_one_sentence(tmp_path, data, given, sentence):
    with pytest.raises(lp.ProbeError, match=sentence):
        lp.fit_lens(lp.VLM(random_llava(), llava_processor()), data, tmp_path, **given)


def test_under_an_intervention_none_is_fitted(tmp_path):
    vlm = lp.VLM(random_llava(), llava_processor())
    with lp.ablate(vlm, mlp=[1]), pytest.raises(lp.BadInput, match="an intervention is in force"):
        try:
            lp.fit_lens(vlm, rows(3), tmp_path)
        finally:
            vlm.generate(photo(), QUESTIONS[0], max_new_tokens=1)  # else that it never acted is told instead
