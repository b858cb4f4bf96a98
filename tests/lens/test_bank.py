"""A bank finds what dense products over its own store find; what is in it finds itself; another model's is refused."""

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe.lens.bank import WordBank
from tests.models import llava_processor, photo, random_llava

SENTENCES = ["There is a dog on the red road.", "Is there a stop sign?", "There is a Dog in the car.", "a dog or a cat"]
CAPTURE = lp.Capture(positions=["predicting", "image", "text"])


@pytest.fixture(scope="module")
def vlm() -> lp.VLM:
    return lp.VLM(random_llava(), llava_processor())


@pytest.fixture(scope="module")
def bank(vlm, tmp_path_factory) -> WordBank:
    return lp.word_bank(vlm, SENTENCES, tmp_path_factory.mktemp("bank"), layers=[1, 3])


@pytest.fixture(scope="module")
def trace(vlm) -> lp.Trace:
    return vlm.generate(photo(), "What is this?", max_new_tokens=2, capture=CAPTURE)


def dense(bank: WordBank, states: torch.Tensor) -> np.ndarray:
    """[layers, N, contexts] cosines in float64, of the tensors that ``lp.Features`` reads."""
    held = [bank.features[f"layer_{layer}", "at"].values.double().numpy() for layer in bank.layers]
    rows = np.stack([layer / np.linalg.norm(layer, axis=1, keepdims=True) for layer in held])
    wide = states.double().numpy()
    return wide / np.linalg.norm(wide, axis=1, keepdims=True) @ rows.transpose(0, 2, 1)


@pytest.mark.parametrize("layer", [0, 2, -1], ids=["embedding", "middle", "normed"])
def test_equals_dense_cosines_over_its_store(bank, trace, layer):
    found = bank.words(trace, layer=layer, top=4)
    cosines = dense(bank, trace.hidden(layer=layer, at=lp.IMAGE))
    best = cosines.max(0)
    order = np.argsort(-best, axis=1)[:, :4]
    assert found.contexts.tolist() == order.tolist()
    assert np.allclose(found.similarity, np.take_along_axis(best, order, 1), atol=1e-6)
    layers = np.take_along_axis(np.array(bank.layers)[cosines.argmax(0)], order, 1)
    assert found.layers.tolist() == layers.tolist()
    assert found.texts[5][0] == bank.contexts[order[5, 0]].word
    assert found.positions == tuple(trace.positions(lp.IMAGE)) and found.layer == layer % 5


def test_a_map_is_the_best_cosine_with_any_context_of_a_word(bank, trace):
    m = bank.words(trace, layer=2).map("dog")
    rows = [row for row, context in enumerate(bank.contexts) if context.word == "dog"]
    cosines = dense(bank, trace.hidden(layer=2, at=lp.IMAGE))[:, :, rows].max((0, 2))
    assert np.allclose(m.values[0], cosines, atol=1e-6)
    assert m.label() == "dog" and m.about["unit"] == "cosine at layer 2"


def test_a_word_that_the_bank_read_finds_itself(vlm, bank):
    said = vlm.generate(prompt=SENTENCES[0], max_new_tokens=1, capture=CAPTURE)
    for layer in bank.layers:
        found = bank.words(said, layer=layer, at="road", top=1)
        assert found.found[-1][0].marked == "There is a dog on the red [road]."
        assert float(found.similarity[-1, 0]) == pytest.approx(1, abs=1e-6) and int(found.layers[-1, 0]) == layer


def test_words_are_found_in_their_case_or_in_any(bank):
    words = [context.word for context in bank.contexts]
    assert [words[row] for row in bank.rows("Dog")] == ["Dog"]
    assert {words[row] for row in bank.rows("DOG")} == {"dog", "Dog"}
    assert bank.vocabulary["dog"] == len(bank.rows("DOG")) == 3
    assert "dog" in bank.content and "the" not in bank.content


def test_only_some_words_may_be_found(bank, trace):
    found = bank.words(trace, layer=2, among=["car", "sign"], top=9)
    assert found.similarity.shape == (36, 2)
    assert {word for token in found.texts for word in token} == {"car", "sign"}
    assert {word for token in bank.words(trace, layer=2, among="car").texts for word in token} == {"car"}


def test_a_single_token_and_an_answer_can_be_looked_at(bank, trace):
    assert bank.words(trace, layer=2, at=trace.prompt_length - 1).positions == (trace.prompt_length - 1,)
    assert bank.words(trace, layer=2, at=lp.ANSWER).positions == (trace.prompt_length,)


def test_it_is_told_as_a_table_and_as_columns(bank, trace):
    found = bank.words(trace, layer=2, top=2)
    assert "nearest contexts to 36 tokens of layer 2" in str(found)
    told = found.to_dict()
    assert len(told["word"]) == 72 and told["sentence"][0][told["start"][0] :].startswith(told["word"][0])
    assert "sentences; layers 1, 3" in repr(bank)


def test_another_process_may_move_on_with_it(bank, trace):
    again = WordBank(bank.folder)
    assert again.contexts == bank.contexts
    assert torch.equal(again.words(trace, layer=2).similarity, bank.words(trace, layer=2).similarity)


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        (lambda bank, trace: bank.words(trace, layer=9), lp.OutOfRange, "layer 9 is not there: this model has 0 to 4"),
        (lambda bank, trace: bank.words(trace, layer=1, at="zebra"), lp.OutOfRange, "'zebra' is neither a word"),
        (lambda bank, trace: bank.words(trace, layer=1, at=[]), lp.BadInput, r"at=\[\] names no token"),
        (lambda bank, trace: bank.words(trace, layer=1, among=["zebra"]), lp.OutOfRange, "'zebra' is no word of this"),
        (lambda bank, trace: bank.words(trace, layer=1, among=[]), lp.BadInput, "among= names no word"),
        (lambda bank, trace: bank.words(trace, layer=1).map("stop sign"), lp.OutOfRange, "looked for one by one"),
        (lambda bank, trace: bank.words(trace, layer=1).map(" "), lp.BadInput, "a word is meant"),
        (lambda bank, trace: bank.words(trace, layer=1, at=lp.LAST).map("dog"), lp.BadInput, "at=lp.IMAGE"),
        (lambda bank, trace: bank.similarity("dog", torch.ones(2, 3)), lp.BadInput, r"states \[N, 64\]; got \[2, 3\]"),
        (lambda bank, trace: bank.states(2), lp.OutOfRange, r"no layer 2; it has 1, 3: word_bank\(..., layers=\[2\]\)"),
    ],
    ids=[
        "layer",
        "position",
        "no-position",
        "other-word",
        "no-words",
        "two-words",
        "empty-word",
        "not-image",
        "width",
        "no-layer",
    ],
)
def test_what_is_not_there_is_told_in_a_sentence(bank, trace, asked, error, told):
    with pytest.raises(error, match=told):
        asked(bank, trace)


def test_states_that_were_not_kept_name_the_capture(vlm, bank):
    plain = vlm.generate(photo(), "What?", max_new_tokens=1)
    with pytest.raises(lp.NotCaptured, match=r"pass Capture\(positions=\['predicting', 'image'\]\)"):
        bank.words(plain, layer=2)


@pytest.mark.parametrize("change", ["weights", "dtype"])
def test_a_trace_of_another_model_is_refused(bank, change):
    model = random_llava(seed=1) if change == "weights" else random_llava().bfloat16()
    other = lp.VLM(model, llava_processor()).generate(photo(), "What?", max_new_tokens=1, capture=CAPTURE)
    with pytest.raises(lp.BadInput, match=f"bank is of another model than the trace .*{change}"):
        bank.words(other, layer=2)


def test_a_state_that_is_no_number_is_told(vlm, bank, trace):
    held = trace.records["hidden"].clone()
    held[:, 2] = torch.nan
    broken = lp.Trace(**{**vars(trace), "records": {**trace.records, "hidden": held}})
    with pytest.raises(lp.NotANumber, match="hidden states of layer 2 are not all finite"):
        bank.words(broken, layer=2)


def test_another_store_is_no_bank(vlm, tmp_path):
    row = {"prompt": "a dog", "image": None, "at": [1]}
    lp.extract(vlm, [row], tmp_path / "f", layers=[1], positions="text", columns={"image": None})
    with pytest.raises(lp.BadFile, match="store of features and no bank of words"):
        WordBank(tmp_path / "f")
    lp.extract(vlm, [row], tmp_path / "g", layers=[1], positions="at", columns={"image": None})
    with pytest.raises(lp.BadFile, match="store of features and no bank of words"):
        _ = WordBank(tmp_path / "g").contexts


@pytest.mark.parametrize("change", [{"words": ["a"]}, {"words": 7}, {"starts": None}], ids=["few", "number", "none"])
def test_a_damaged_index_is_told(vlm, tmp_path, change):
    row = {
        "prompt": "a dog on",
        "at": [1, 2],
        "sentence": "a dog",
        "words": ["a", "dog"],
        "starts": [0, 2],
        "stops": [1, 5],
    }
    folder = tmp_path / "f"
    lp.extract(vlm, [{**row, **change}], folder, layers=[1], positions="at", columns={"image": None})
    with pytest.raises(lp.BadFile, match="is no bank of words, or a damaged one"):
        _ = WordBank(folder).contexts
