"""What is recorded equals what transformers' own, slower ways record: eager attention, output_hidden_states."""

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import llava_probe as lp
from llava_probe.inside import seam
from tests.models import llava_processor, photo, random_llava
from tests.zoo import newer

QUESTION = "what is the text on the stop sign"
PROMPT = f"USER: <image>\n{QUESTION}\nASSISTANT:"


def plain_generate(model, processor, attention="sdpa", **kwargs):
    """transformers alone: every recorder of its own switched on."""
    model = copy.deepcopy(model)
    model.set_attn_implementation(attention)
    inputs = processor(text=PROMPT, images=photo(), return_tensors="pt")
    return inputs, model.generate(
        **inputs,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
        output_attentions=attention == "eager",
        **kwargs,
    )


def eager_rows(out, row_of_step):
    """[T, L, H, K] of the predicting queries, zero-padded to K."""
    steps = [
        torch.stack([layer[row, :, -1] for layer in step])
        for step, row in zip(out.attentions, row_of_step, strict=False)
    ]
    keys = steps[-1].shape[-1]
    return torch.stack([torch.nn.functional.pad(step, (0, keys - step.shape[-1])) for step in steps])


def states(out, row_of_step):
    """[T, L + 1, D] at the predicting positions."""
    pairs = zip(out.hidden_states, row_of_step, strict=False)
    return torch.stack([torch.stack([layer[row, -1] for layer in step]) for step, row in pairs])


DECODING = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
    "top-k sampling": {"do_sample": True, "top_k": 5},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 3, "do_sample": True},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "repetition penalty": {"repetition_penalty": 1.5},
    "guided": {"guidance_scale": 1.5},
    "guided, no cache": {"guidance_scale": 1.5, "use_cache": False},
    "chunked prefill": {"prefill_chunk_size": 16},
}


@pytest.mark.parametrize("kwargs", DECODING.values(), ids=DECODING)
@pytest.mark.parametrize("name", ["grouped queries", "full heads", "tiny"])
def test_records_equal_transformers_own(kwargs, name, tiny_vlm):
    newer.skip_where_broken(kwargs)
    model, processor = random_llava(kv_heads=2 if name == "grouped queries" else 4), llava_processor()
    if name == "tiny":
        model, processor = tiny_vlm.model, tiny_vlm.processor
    torch.manual_seed(7)
    _, plain = plain_generate(model, processor, max_new_tokens=6, **kwargs)
    torch.manual_seed(7)
    _, eager = plain_generate(model, processor, "eager", max_new_tokens=6, **kwargs)
    trace = lp.VLM(model, processor).generate(photo(), prompt=PROMPT, max_new_tokens=6, seed=7, **kwargs)

    beams = plain.get("beam_indices")
    length = len(trace.generated)
    source = [0] * length if beams is None else beams[0, :length].tolist()
    assert trace.generated_ids.tolist() == plain.sequences[0, trace.prompt_length :][:length].tolist()
    assert torch.equal(trace.logits, torch.stack([plain.logits[t][source[t]] for t in range(length)]))
    assert torch.equal(trace.scores, torch.stack([plain.scores[t][source[t]] for t in range(length)]))
    assert torch.equal(trace.hidden_states, states(plain, source)[:length])
    if "cache_implementation" not in kwargs and "prefill_chunk_size" not in kwargs:
        torch.testing.assert_close(trace.attention, eager_rows(eager, source)[:length], atol=1e-5, rtol=0)
    rows = trace.attention.sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_chunks_are_refused_where_they_would_cut_a_pictures_features(monkeypatch):
    monkeypatch.setattr(seam, "encodes_first", lambda _model: False)
    with pytest.raises(lp.BadInput, match=r"LlavaForConditionalGeneration of .* into chunks; leave it out"):
        lp.VLM(random_llava(), llava_processor()).generate(photo(), QUESTION, prefill_chunk_size=16)


@pytest.mark.parametrize("kwargs", [{"cache_implementation": "static"}, {"prefill_chunk_size": 16}], ids=str)
def test_other_caches_and_chunks_give_the_rows_of_a_plain_run(kwargs):
    newer.skip_where_broken(kwargs)
    vlm = lp.VLM(random_llava(), llava_processor())
    plain = vlm.generate(photo(), QUESTION, max_new_tokens=6)
    other = vlm.generate(photo(), QUESTION, max_new_tokens=6, capture=lp.Capture(attention_positions="all"), **kwargs)
    assert other.answer == plain.answer
    torch.testing.assert_close(other.attention, plain.attention, atol=1e-5, rtol=0)
    whole = vlm.generate(photo(), QUESTION, max_new_tokens=6, capture=lp.Capture(attention_positions="all"))
    torch.testing.assert_close(other.rows(at="prompt"), whole.rows(at="prompt"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kwargs", [DECODING["greedy"], DECODING["sampling"], DECODING["beams"]], ids=str)
def test_looking_never_changes_the_answer(kwargs):
    model, processor = random_llava(seed=3), llava_processor()
    inputs = processor(text=PROMPT, images=photo(), return_tensors="pt")
    torch.manual_seed(11)
    plain = model.generate(**inputs, max_new_tokens=12, **kwargs)[0, inputs["input_ids"].shape[1] :]
    everything = lp.Capture(positions="all", attention_positions="all", vision=True)
    vlm = lp.VLM(model, processor)
    for capture in (lp.Capture(), everything, lp.Capture(attention=False, hidden_states=False, logits=False)):
        trace = vlm.generate(photo(), prompt=PROMPT, max_new_tokens=12, seed=11, capture=capture, **kwargs)
        assert torch.equal(trace.generated_ids, plain[: len(trace.generated)])
        assert len(trace.generated) == len(plain)


def test_all_prompt_rows_and_states_equal_one_eager_pass(random_vlm):
    everything = lp.Capture(positions="all", attention_positions="all")
    trace = random_vlm.generate(photo(), prompt=PROMPT, max_new_tokens=5, capture=everything)
    model = copy.deepcopy(random_vlm.model)
    model.set_attn_implementation("eager")
    inputs = random_vlm.processor(text=PROMPT, images=photo(), return_tensors="pt")
    ids = torch.tensor([[token.id for token in trace.tokens[:-1]]])
    inputs["input_ids"], inputs["attention_mask"] = ids, torch.ones_like(ids)
    with torch.no_grad():
        out = model(**inputs, output_attentions=True, output_hidden_states=True)
    fed = list(range(ids.shape[1]))
    torch.testing.assert_close(
        trace.rows(at=fed), torch.stack(out.attentions, dim=2)[0].permute(2, 1, 0, 3), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(trace.hidden(at=fed), torch.stack(out.hidden_states, dim=2)[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(trace.logits, out.logits[0, trace.prompt_length - 1 :], atol=1e-4, rtol=1e-4)


def test_a_selection_holds_the_very_numbers_of_the_whole(random_vlm):
    whole = random_vlm.generate(photo(), QUESTION, capture=lp.Capture(positions="all", attention_positions="all"))
    part = random_vlm.generate(
        photo(),
        QUESTION,
        capture=lp.Capture(
            layers=[-1, 1],
            positions=["image", "predicting"],
            attention_layers=[2],
            heads=[3, 1],
            attention_positions=[5, 9],
        ),
    )
    assert part.hidden_layers == (1, 4)
    assert torch.equal(part.hidden(layer=1, at="image"), whole.hidden(layer=1, at="image"))
    assert torch.equal(part.hidden(layer=4), whole.hidden(layer=-1))
    torch.testing.assert_close(
        part.rows(at=9, layer=2, head=3), whole.rows(at=9, layer=2, head=3)[: part.prompt_length]
    )
    with pytest.raises(lp.NotCaptured, match=r"attention of head 0.*heads=\[0\]"):
        part.rows(at=9, layer=2, head=0)
    with pytest.raises(lp.NotCaptured, match=r"layer 2.*layers=\[2\]"):
        part.hidden(layer=2)
    with pytest.raises(lp.NotCaptured, match="predicting"):
        _ = part.attention


def test_vision_records_equal_the_tower_alone(random_vlm):
    trace = random_vlm.generate(photo(), QUESTION, max_new_tokens=3, capture=lp.Capture(vision=True))
    model = copy.deepcopy(random_vlm.model)
    model.set_attn_implementation("eager")
    pixels = random_vlm.processor(text=PROMPT, images=photo(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = model.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(trace.vision_hidden_states, torch.stack(out.hidden_states, dim=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trace.vision_attention, torch.stack(out.attentions, dim=1), atol=1e-5, rtol=0)


def test_the_projectors_output_is_hidden_state_0_at_the_image(random_vlm):
    trace = random_vlm.generate(photo(), QUESTION, max_new_tokens=2, capture=lp.Capture(positions="all"))
    pixels = random_vlm.processor(text=PROMPT, images=photo(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = random_vlm.model.get_image_features(pixels).pooler_output[0]
    torch.testing.assert_close(trace.projected, features)


def test_an_eager_model_gives_the_same_rows_as_sdpa():
    sdpa = lp.VLM(random_llava(), llava_processor()).generate(photo(), QUESTION, max_new_tokens=5)
    eager_model = random_llava(attention="eager")
    eager = lp.VLM(eager_model, llava_processor()).generate(
        photo(), QUESTION, max_new_tokens=5, capture=lp.Capture(attention_positions="all", heads=[0, 2])
    )
    torch.testing.assert_close(eager.attention, sdpa.attention[:, :, [0, 2]], atol=1e-5, rtol=0)
    assert eager.provenance["attention"] == "eager"


def test_batch_members_equal_themselves_alone(random_vlm):
    asked = [
        (photo(), QUESTION),
        (photo(30, 90, 1), "where"),
        (photo(200, 100, 2), "look at this red circle and the blue square what is on the sign"),
    ]
    capture = lp.Capture(positions=["predicting", "image"], attention_positions=["predicting", 4], vision=True)
    batch = random_vlm.generate_batch(asked, max_new_tokens=8, capture=capture)
    for (image, question), together in zip(asked, batch, strict=True):
        alone = random_vlm.generate(image, question, max_new_tokens=8, capture=capture)
        assert together.tokens == alone.tokens
        assert together.layouts == alone.layouts
        assert together.attention_positions == alone.attention_positions
        for name in ("hidden", "attention", "logits", "vision_hidden", "vision_attention"):
            torch.testing.assert_close(together.records[name], alone.records[name], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.records["attention"], alone.records["attention"], atol=1e-5, rtol=0)


def test_batched_beams_equal_themselves_alone(random_vlm):
    asked = [(photo(), QUESTION), (photo(30, 90, 1), "where")]
    kwargs = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 7}
    batch = random_vlm.generate_batch(asked, **kwargs)
    for (image, question), together in zip(asked, batch, strict=True):
        alone = random_vlm.generate(image, question, **kwargs)
        for one, other in zip((together, *together.alternatives), (alone, *alone.alternatives), strict=True):
            assert one.tokens == other.tokens
            torch.testing.assert_close(one.attention, other.attention, atol=1e-5, rtol=0)
            assert one.sequence_score == pytest.approx(other.sequence_score, abs=1e-5)


def test_the_model_is_given_back_as_it_was(random_vlm):
    model = random_vlm.model

    def look():
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        return hooks, model.config._attn_implementation, model.config.text_config._attn_implementation

    inputs = random_vlm.processor(text=PROMPT, images=photo(), return_tensors="pt")
    model.generate(**inputs, max_new_tokens=1)  # transformers leaves inert recording hooks of its own
    before = look()
    random_vlm.generate(photo(), QUESTION, max_new_tokens=2, capture=lp.Capture(vision=True))
    assert look() == before
    with pytest.raises(lp.ProbeError):
        random_vlm.generate(photo(), QUESTION, max_new_tokens=2, do_sample=True, temperature=-1.0)
    assert look() == before
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(lp.NotANumber, match="NaN at token 0"):
        random_vlm.generate(photo(), QUESTION, max_new_tokens=2)
    assert look() == before


@pytest.fixture
def restless():
    """Threads that change places ten thousand times a second."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def asked_by(number):
    """A picture, of a size that nobody measured, and a question for one thread."""
    words = "where is the red sign", "what colour", QUESTION, "is it blue or red", "look at this circle"
    return photo(40 + 8 * number, 76 - 4 * number, seed=number), words[number % 5] + " and" * number


def test_threads_with_questions_of_their_own_are_answered_as_each_alone(restless):
    """Measuring a picture's places switches an eager model to another kernel: a run beside it would have no rows."""

    def vlm():
        return lp.VLM(random_llava(attention="eager"), llava_processor(), layout="measured")

    def ask(vlm, number):
        capture = lp.Capture(positions=["image", "predicting"], vision=True)
        return vlm.generate(*asked_by(number), max_new_tokens=6, capture=capture)

    alone = [ask(vlm(), number) for number in range(8)]
    assert len({(trace.prompt_length, trace.images[0].size) for trace in alone}) == 8
    shared = vlm()
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(ask, shared, number) for number in range(8)]
    for run, expected in zip(runs, alone, strict=True):
        assert run.result() == expected


def test_a_check_beside_a_run_leaves_both_as_they_were():
    """Held up while the model is eager for its sake, a check must not be joined by another thread's run."""
    vlm = lp.VLM(random_llava(), llava_processor())
    alone = vlm.generate(*asked_by(1), max_new_tokens=8)
    decoder, checking = vlm.anatomy.decoder.owner, threading.get_ident()
    held, joined, seen = threading.Event(), threading.Event(), []

    def hold(*_):
        if decoder.config._attn_implementation == "eager":
            if threading.get_ident() != checking:
                joined.set()
            elif not held.is_set():
                held.set()
                seen.append(joined.wait(0.5))

    def run():
        assert held.wait(60)
        return vlm.generate(*asked_by(1), max_new_tokens=8)

    handle = decoder.register_forward_pre_hook(hold)
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(run)
        found = lp.check(vlm, *asked_by(2), max_new_tokens=4)
    handle.remove()
    assert seen == [False]
    assert found.ok, str(found)
    assert beside.result().provenance["attention"] == "sdpa"
    assert beside.result().records.keys() == alone.records.keys()
    assert all(torch.equal(beside.result().records[name], alone.records[name]) for name in alone.records)
    assert decoder.config._attn_implementation == "sdpa"


def test_compiled_decoding_is_recorded():
    from transformers import CompileConfig

    model, processor = random_llava(), llava_processor()
    compiled = CompileConfig(backend="eager", mode=None)
    compiled._compile_all_devices = True
    vlm = lp.VLM(model, processor)
    plain = vlm.generate(photo(), QUESTION, max_new_tokens=6)
    for _ in range(2):  # the second run finds the compiled graph of the first
        trace = vlm.generate(
            photo(), QUESTION, max_new_tokens=6, cache_implementation="static", compile_config=compiled
        )
        assert trace.answer == plain.answer
        torch.testing.assert_close(trace.attention, plain.attention, atol=1e-5, rtol=0)
        torch.testing.assert_close(trace.hidden_states, plain.hidden_states, atol=1e-4, rtol=1e-4)
