"""What ids spell comes with the trace, agrees with the tokenizer, and costs little."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import llava_probe as lp
from llava_probe.trace.spellings import spellings
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text"


@pytest.fixture(scope="module")
def vlm():
    return lp.VLM(random_llava(), llava_processor())


def test_spellings_are_what_the_tokenizer_decodes(vlm):
    tokenizer = vlm.processor.tokenizer
    told = spellings(tokenizer)
    assert told.whole
    assert len(told.texts) == len(tokenizer)
    assert all(text == tokenizer.decode([token]) for token, text in told.texts.items())
    assert told.special == frozenset(tokenizer.all_special_ids)


def test_sentencepiece_spellings_keep_their_space():
    pieces = {"<unk>": 0, "▁yes": 1, "yes": 2, "▁Yes": 3, "<0x0A>": 4, "▁": 5}
    tokenizer = Tokenizer(models.BPE(pieces, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    told = spellings(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))
    assert [told.text(token) for token in range(6)] == ["<unk>", " yes", "yes", " Yes", "\n", " "]
    assert told.of("YES ") == (1, 2, 3)
    assert told.text(99) == "#99"


def test_a_trace_with_whole_logits_spells_the_whole_vocabulary(vlm):
    one, other = (vlm.generate(photo(), QUESTION, max_new_tokens=2) for _ in range(2))
    assert one.spellings.whole
    assert one.spellings is other.spellings  # once for a model, not for each trace
    assert vlm.score(photo(), QUESTION, "red").spellings.whole


def test_a_trace_with_the_top_k_spells_those(vlm):
    trace = vlm.generate(photo(), QUESTION, max_new_tokens=3, capture=lp.Capture(logits=4, scores=2))
    shown = {token for name in ("logits", "scores") for token in trace.top(name).ids.flatten().tolist()}
    assert set(trace.spellings.texts) == shown
    assert not trace.spellings.whole
    bare = vlm.generate(photo(), QUESTION, max_new_tokens=3, capture=lp.Capture(logits=False, scores=False))
    assert not bare.spellings.texts


@pytest.mark.parametrize("kept", [True, 4])
def test_spellings_come_back_with_every_alternative(vlm, tmp_path, kept):
    capture = lp.Capture(logits=kept, scores=kept)
    trace = vlm.generate(photo(), QUESTION, max_new_tokens=3, num_beams=3, num_return_sequences=3, capture=capture)
    loaded = lp.Trace.load(trace.save(tmp_path / "beams.trace"))
    assert loaded == trace
    assert loaded.alternatives[1].spellings == trace.spellings
    for sequence in (loaded, *loaded.alternatives):
        texts = lp.confidence(sequence).top(2)
        assert all(candidate.text == trace.spellings.text(candidate.id) for step in texts for candidate in step)
