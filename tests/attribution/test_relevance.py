"""Relevance and rollout are the dense rules' numbers, without their matrices."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import llava_probe as lp
from llava_probe import tiny
from llava_probe.attribution import prepared
from llava_probe.attribution.engine.forward import forward
from tests import zoo
from tests.models import llava_processor, photo, random_llava


def exact(seed: int = 0, **options) -> lp.VLM:
    """A random LLaVA in float64."""
    return lp.VLM(random_llava(seed, **options).double(), llava_processor())


def answered(vlm: lp.VLM, tokens: int = 3) -> lp.Trace:
    return vlm.generate(photo(), "What is this?", max_new_tokens=tokens, min_new_tokens=tokens)


def whole_sequence(vlm: lp.VLM, trace: lp.Trace) -> dict[str, torch.Tensor]:
    """The inputs of prompt and answer, the last token left out, made without the package's own pass."""
    inputs, _ = vlm.model_inputs(trace.images[0], prompt=trace.request.prompt)
    ids = torch.tensor([[token.id for token in trace.tokens[:-1]]])
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def keeper(kept: list[torch.Tensor]):
    """A hook that keeps the weights which an eager attention module returns, and asks for their gradient."""

    def keep(_module, _args, output):
        output[1].retain_grad()
        kept.append(output[1])

    return keep


def plain_attention(module, query, key, value, attention_mask, scaling, **_kwargs):
    """softmax(q kT + mask) v written out, in the precision of its inputs, weights kept in the graph."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    logits = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        logits = logits.masked_fill(~attention_mask, float("-inf"))
    elif getattr(module, "is_causal", False):
        logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), float("-inf"))
    weights = torch.softmax(logits, dim=-1)
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("plain", plain_attention)
AttentionMaskInterface.register("plain", sdpa_mask)


def dense(vlm: lp.VLM, inputs: dict[str, torch.Tensor], step_of: dict[int, int], quantity: str):
    """Every attention matrix with its gradient, all kept: [L] of (A, dy/dA), each [H, P, P]."""
    model = vlm.model
    before = model.model.language_model.config._attn_implementation
    model.set_attn_implementation("plain")
    kept: list[torch.Tensor] = []
    hooks = [layer.self_attn.register_forward_hook(keeper(kept)) for layer in model.model.language_model.layers]
    try:
        logits = model(**inputs, use_cache=False).logits[0]
        scores = logits if quantity == "logit" else torch.log_softmax(logits, -1)
        sum(scores[position, token] for position, token in step_of.items()).backward()
        return [(each.detach()[0], each.grad[0]) for each in kept]
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(before)


def chefer(matrices, positions: list[int]) -> torch.Tensor:
    """R of the generic rule, whole: the mean of its rows at some positions."""
    size = matrices[0][0].shape[-1]
    whole = torch.eye(size, dtype=torch.float64)
    for weights, slope in matrices:
        whole = whole + (weights * slope).clamp(min=0).mean(0) @ whole
    return whole[positions].mean(0) * 1.0


@pytest.mark.parametrize("quantity", ["logit", "logprob"])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_relevance_equals_the_dense_rule(quantity, kv_heads):
    vlm = exact(kv_heads=kv_heads)
    trace = answered(vlm)
    position = trace.prompt_length + 1
    m = lp.attribute(vlm, trace, "relevance", tokens=position, of=quantity)
    at = position - 1
    matrices = dense(vlm, whole_sequence(vlm, trace), {at: trace.tokens[position].id}, quantity)
    truth = chefer(matrices, [at])
    assert m.values[0].numpy() == pytest.approx(truth[trace.layouts[0].positions].numpy(), rel=1e-6)
    places = [token.position for token in m.text_tokens]
    assert m.text[0].numpy() == pytest.approx(truth[places].numpy(), rel=1e-6, abs=1e-12)


def test_a_word_of_several_tokens_is_one_target():
    vlm = exact()
    trace = answered(vlm)
    places = [trace.prompt_length, trace.prompt_length + 1]
    m = lp.attribute(vlm, trace, "relevance", tokens=[places], of="logit")
    steps = {place - 1: trace.tokens[place].id for place in places}
    truth = chefer(dense(vlm, whole_sequence(vlm, trace), steps, "logit"), list(steps))
    assert len(m) == 1
    assert m.values[0].numpy() == pytest.approx(truth[trace.layouts[0].positions].numpy(), rel=1e-6)


def test_a_contrast_is_the_difference_of_two_log_probabilities(tiny_vlm):
    scene = tiny.scene(11)
    question = next(q for q in scene.questions if q.kind == "colour")
    trace = tiny_vlm.generate(scene.image, question.question)
    other = "blue" if question.answer != "blue" else "red"
    m = lp.attribute(tiny_vlm, trace, "input_x_gradient", contrast=other)
    mine = lp.attribute(tiny_vlm, trace, "input_x_gradient", tokens=question.answer)
    theirs = lp.attribute(tiny_vlm, trace, "input_x_gradient", text=other)
    assert torch.allclose(m.values, mine.values - theirs.values, rtol=1e-3, atol=1e-4 * float(m.values.abs().max()))


def test_a_contrast_of_several_tokens_is_teacher_forced(tiny_vlm):
    scene = next(scene for scene in map(tiny.scene, range(100)) if any(q.answer == "top" for q in scene.questions))
    question = next(q for q in scene.questions if q.answer == "top")
    trace = tiny_vlm.generate(scene.image, question.question)
    assert trace.answer == "top"
    m = lp.attribute(tiny_vlm, trace, "input_x_gradient", contrast="bottom left")
    mine = lp.attribute(tiny_vlm, trace, "input_x_gradient", tokens="top")
    theirs = lp.attribute(tiny_vlm, trace, "input_x_gradient", text="bottom left")
    assert (m.about["forwards"], m.about["backwards"]) == (3, 2)
    assert torch.allclose(m.values, mine.values - theirs.values, rtol=1e-3, atol=1e-4 * float(m.values.abs().max()))


def test_rollout_equals_the_product_of_matrices():
    vlm = exact()
    trace = answered(vlm)
    position = trace.prompt_length + 2
    m = lp.attribute(vlm, trace, "rollout", tokens=position)
    at = position - 1
    matrices = dense(vlm, whole_sequence(vlm, trace), {at: trace.tokens[position].id}, "logit")
    whole = torch.eye(len(trace.tokens) - 1, dtype=torch.float64)
    for weights, _ in matrices:
        mixed = weights.mean(0) + torch.eye(len(whole), dtype=torch.float64)
        whole = mixed / mixed.sum(1, keepdim=True) @ whole
    assert m.values[0].numpy() == pytest.approx(whole[at, trace.layouts[0].positions].numpy(), rel=1e-6)
    assert float(m.values.sum() + m.text.sum()) == pytest.approx(1)


def test_rollout_equals_that_of_a_trace_that_kept_every_row(random_vlm):
    trace = random_vlm.generate(
        photo(), "What is this?", max_new_tokens=2, capture=lp.Capture(attention_positions="all")
    )
    place = trace.prompt_length
    kept = lp.rollout(trace, tokens=[place]).values
    assert torch.allclose(lp.attribute(random_vlm, trace, "rollout", tokens=place).values, kept, rtol=1e-4, atol=1e-7)


def test_attention_gradient_is_one_row_of_the_dense_products():
    vlm = exact()
    trace = answered(vlm)
    place = trace.prompt_length + 1
    matrices = dense(vlm, whole_sequence(vlm, trace), {place - 1: trace.tokens[place].id}, "logit")
    columns = trace.layouts[0].positions
    for layers in (None, [1, 3]):
        m = lp.attribute(vlm, trace, "attention_gradient", tokens=place, of="logit", layers=layers)
        chosen = [matrices[layer] for layer in layers or range(4)]
        truth = torch.stack([(a * g).clamp(min=0).mean(0)[place - 1] for a, g in chosen]).mean(0)
        assert m.values[0].numpy() == pytest.approx(truth[columns].numpy(), rel=1e-6)


def test_checkpoints_change_no_number():
    vlm = exact()
    trace = answered(vlm)
    plain = lp.attribute(vlm, trace, "relevance", tokens="generated")
    again = lp.attribute(vlm, trace, "relevance", tokens="generated", checkpoint=True)
    assert torch.allclose(plain.values, again.values, rtol=1e-9, atol=0)
    assert "forward" not in vlm.model.model.language_model.layers[0].__dict__


def test_relevance_through_the_tower_equals_the_dense_rule():
    """CLIP's class token takes part; LLaVA reads the last block but one, so the last has no say."""
    vlm = exact()
    trace = answered(vlm)
    place = trace.prompt_length
    m = lp.attribute(vlm, trace, "relevance", tokens=place, of="logit", through="tower")
    model, inputs = vlm.model, whole_sequence(vlm, trace)
    kept = []
    for layer in model.model.vision_tower.encoder.layers:
        layer.self_attn.register_forward_hook(keeper(kept))
    language = dense(vlm, inputs, {place - 1: trace.tokens[place].id}, "logit")
    row = chefer(language, [place - 1])[trace.layouts[0].positions]
    used = [(each.detach()[0], each.grad[0]) for each in kept if each.grad is not None]
    assert len(used) == len(kept) - 1
    moving = torch.cat([torch.zeros(1, dtype=torch.float64), row])  # the class token before the patches
    for weights, slope in reversed(used):
        moving = moving + moving @ (weights * slope).clamp(min=0).mean(0)
    assert m.values[0].numpy() == pytest.approx(moving[1:].numpy(), rel=1e-6)


def test_twenty_tokens_cost_one_forward_and_twenty_backward_passes(random_vlm):
    trace = random_vlm.generate(photo(), "What is this?", max_new_tokens=20, min_new_tokens=20)
    counted = {"forward": 0, "backward": 0}
    first = random_vlm.model.model.language_model.layers[0]

    def seen(_module, _args, output):
        counted["forward"] += 1
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        tensor.register_hook(lambda _grad: counted.__setitem__("backward", counted["backward"] + 1))

    hook = first.register_forward_hook(seen)
    try:
        m = lp.attribute(random_vlm, trace, "relevance", tokens="generated")
    finally:
        hook.remove()
    assert len(m) == 20
    assert counted == {"forward": 1, "backward": 20}
    assert (m.about["forwards"], m.about["backwards"]) == (1, 20)


def test_rows_do_not_add_up_over_targets():
    """Each target's gradients are its own, whatever was explained before it."""
    vlm = exact()
    trace = answered(vlm)
    for method in ("relevance", "attention_gradient", "gradient", "input_x_gradient", "llava_cam"):
        together = lp.attribute(vlm, trace, method, tokens="generated")
        for row, token in enumerate(trace.generated):
            alone = lp.attribute(vlm, trace, method, tokens=token.position)
            assert torch.allclose(alone.values[0], together.values[row], rtol=1e-9, atol=1e-15), (method, row)


def test_the_model_is_as_before(random_vlm):
    trace = answered(random_vlm)
    parameter = next(random_vlm.model.parameters())
    flags = [each.requires_grad for each in random_vlm.model.parameters()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in random_vlm.model.modules()]
    for method in ("relevance", "gradient", "rollout", "occlusion", "llava_cam"):
        lp.attribute(random_vlm, trace, method, tokens=trace.prompt_length)
    with pytest.raises(lp.OutOfRange):
        lp.attribute(random_vlm, trace, "llava_cam", layer=99)
    assert [each.requires_grad for each in random_vlm.model.parameters()] == flags
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in random_vlm.model.modules()] == hooks
    assert parameter.grad is None
    assert random_vlm.generate(photo(), "What is this?", max_new_tokens=3).answer == trace.answer


@pytest.mark.parametrize("layer", [0, 2])
def test_nan_names_the_layer_that_it_came_from(layer):
    vlm = exact()
    trace = answered(vlm)

    def spoil(_module, _args, output):
        return output * float("nan")

    hook = vlm.model.model.language_model.layers[layer].mlp.register_forward_hook(spoil)
    try:
        with pytest.raises(lp.NotANumber, match=f"block {layer} "):
            lp.attribute(vlm, trace, "relevance")
    finally:
        hook.remove()


def test_nan_of_a_gradient_names_its_layer():
    vlm = exact()
    trace = answered(vlm)

    def spoil(_module, _args, output):
        tensor = output[0] if isinstance(output, tuple) else output
        tensor.register_hook(lambda grad: grad * float("nan"))

    hook = vlm.model.model.language_model.layers[2].register_forward_hook(spoil)
    try:
        with pytest.raises(lp.NotANumber, match="layer 2 of the language model"):
            lp.attribute(vlm, trace, "relevance", tokens=trace.prompt_length)
    finally:
        hook.remove()


def test_bfloat16_finds_what_float32_finds(tiny_vlm):
    half = lp.load(dtype="bfloat16")
    scene = tiny.scene(11)
    question = next(q for q in scene.questions if q.kind == "colour")
    trace = half.generate(scene.image, question.question)
    close = {}
    for method in ("relevance", "attention_gradient", "rollout", "gradient"):
        one = lp.attribute(half, trace, method, tokens=trace.prompt_length).values[0]
        other = lp.attribute(tiny_vlm, trace, method, tokens=trace.prompt_length).values[0]
        close[method] = float(np.corrcoef(one, other)[0, 1])
    assert min(close.values()) > 0.98, close


@pytest.mark.filterwarnings("ignore:another model made this trace")
def test_dynamic_int8_is_refused_in_a_sentence(random_vlm):
    trace = answered(random_vlm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(random_vlm.model, {torch.nn.Linear}, dtype=torch.qint8)
    quantised = lp.VLM(model, random_vlm.processor)
    with pytest.raises(lp.BadModel, match="lets no gradient through"):
        lp.attribute(quantised, trace, "relevance")
    for method in ("attention", "rollout", "tam", "occlusion"):
        assert torch.isfinite(lp.attribute(quantised, trace, method, tokens=trace.prompt_length).values).all()


def test_near_certainty_a_logprob_still_explains_the_word():
    """log_softmax loses the word's own part of its gradient where its probability rounds to one."""
    from llava_probe.attribution.engine.target import _measured

    logits = torch.tensor([40.0, 1.0, 2.0], requires_grad=True)
    _measured(logits, 0, "logprob").backward()
    exactly = torch.tensor([40.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    others = torch.softmax(exactly[1:].detach(), 0)
    share = float(torch.exp(torch.logsumexp(exactly[1:].detach(), 0) - 40.0))
    truth = torch.tensor([share, -share * others[0], -share * others[1]], dtype=torch.float64)
    assert torch.allclose(logits.grad.double(), truth, rtol=1e-5, atol=0)
    plain = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    assert float(_measured(plain, 1, "logprob")) == pytest.approx(float(torch.log_softmax(plain, 0)[1]))


def test_the_graph_starts_at_the_decoders_entry(random_vlm):
    trace = answered(random_vlm)
    task = prepared(random_vlm, trace, "relevance", tokens=trace.prompt_length)
    with forward(task, 0) as run:
        assert run.entry.is_leaf and run.entry.shape[1] == len(trace.tokens) - 1
        assert torch.allclose(run.logits[0].float(), trace.logits, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3", "mistral3"])
def test_relevance_of_other_families_equals_their_eager_path(name):
    """Grouped queries, windows, prefix attention, rotary sections: the mask is the model's own."""
    vlm = zoo.vlm(name)
    trace = vlm.generate(photo(96, 64), "What is this?", max_new_tokens=2)
    fast = lp.attribute(vlm, trace, "relevance", tokens=trace.prompt_length, of="logit").values
    model, processor = zoo.build(name)
    model.set_attn_implementation("eager")
    slow = lp.attribute(lp.VLM(model, processor), trace, "relevance", tokens=trace.prompt_length, of="logit").values
    assert torch.allclose(fast, slow, rtol=1e-3, atol=1e-6 * float(slow.abs().max()))


def test_the_memory_that_is_told_is_what_the_graph_keeps(random_vlm, monkeypatch):
    """Told from the first block; the others are counted here, storage by storage."""
    monkeypatch.setattr("llava_probe.attribution.engine.graph_memory.TELL_ABOVE", 0)
    trace = answered(random_vlm)
    task = prepared(random_vlm, trace, "relevance", tokens=trace.prompt_length)
    weights = {each.untyped_storage().data_ptr() for each in random_vlm.model.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with (
        pytest.warns(UserWarning, match="checkpoint=True") as told,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        forward(task, 0),
    ):
        pass
    said, unit = str(told[0].message).split("about ")[1].split(";")[0].split()
    others = sum(held.values()) / 3 * 4  # three of four blocks, and a little of the head
    assert unit == "kB"
    assert float(said) * 1e3 == pytest.approx(others, rel=0.15)
