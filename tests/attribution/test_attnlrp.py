"""AttnLRP by modified gradients is the propagation of relevance that its paper writes down, operation by operation.

The truth is ``Walked``: a Llama in float64 whose relevance is divided by hand, R_i = Σ_j x_i·w_ij / z_j · R_j and so
on, with no gradient anywhere. It also counts what each softmax keeps, so that everything sums to the logit.
"""

from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import ACT2FN
from transformers.masking_utils import sdpa_mask
from transformers.models.cohere2.modeling_cohere2 import Cohere2LayerNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama4.modeling_llama4 import Llama4TextL2Norm

import llava_probe as lp
from llava_probe.attribution import prepared
from llava_probe.attribution.attnlrp import Propagating, _Ruled, attnlrp
from llava_probe.attribution.engine.forward import forward
from llava_probe.attribution.engine.rules import rule_of
from tests import zoo
from tests.models import llava_processor, photo, random_llava

pytestmark = pytest.mark.filterwarnings("ignore")

QUESTION = "What is this?"
LEAN = lp.Capture(attention=False, hidden_states=False, logits=False)

#: Families that have a rule for all that they compute.
COVERED = [
    *("aya_vision", "cohere2_vision", "cosmos3_edge", "deepseek_vl", "deepseek_vl_hybrid", "exaone4_5"),
    *("fast_vlm", "fuyu", "gemma3", "gemma3 pan", "glm46v", "glm4v", "glm_ocr", "glmga", "got_ocr2"),
    *("got_ocr2 crop", "hunyuan_vl", "hyperclovax_vision_v2", "idefics3", "internvl", "janus", "lighton_ocr"),
    *("llava", "llava full", "llava pixtral", "llava siglip", "llava_next", "llava_next_video", "llava_onevision"),
    *("mistral3", "molmo2", "ovis2", "paddleocr_vl", "paligemma", "perception_lm", "pp_chart2table"),
    *("qianfan_ocr", "qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_vl", "smolvlm", "video_llama_3", "video_llava"),
    "vipllava",
]

#: Some that have not, and the module in which that shows.
REFUSED = {
    "qwen3_vl_moe": "Qwen3VLMoeTextTopKRouter",
    "qwen3_5": "Qwen3_5GatedDeltaNet",
    "lfm2_vl": "Lfm2ShortConv",
    "muse_glimmer": "MuseGlimmerTextAttention",
    "qwen3_vl": "Qwen3VLTextModel",  # adds features of the picture between blocks
}


def explained(vlm, tokens=None, **options):
    """A task with the answer's first token as its only target, unless others are named."""
    trace = vlm.generate(photo(), QUESTION, max_new_tokens=3, capture=LEAN)
    tokens = [trace.prompt_length] if tokens is None else tokens
    return prepared(vlm, trace, "attnlrp", tokens=tokens, of="logit", options=options)


def plain_logits(vlm, task):
    """[steps, V] of a pass without us."""
    with torch.inference_mode():
        return vlm.model(**task.continuations[0].inputs).logits[0, -len(task.answers[0]) :]


# --- relevance by hand ---


class Walked:
    """A Llama without biases, its forward pass kept, and relevance walked back through it by division."""

    def __init__(self, model):
        self.weights = {name: value.detach().double() for name, value in model.model.language_model.named_parameters()}
        self.head = model.lm_head.weight.detach().double()
        self.config = model.config.text_config
        self.kept = 0.0

    def relevance(self, entry, position, token):
        """[P] of one logit, from what entered [P, D]; also sets ``logit``, and ``kept``: what the softmaxes keep."""
        states, runs = entry, []
        for layer in range(self.config.num_hidden_layers):
            runs.append(self.block(states, layer))
            states = runs[-1].out
        final = self.norm(states, "norm")
        products = final[position] * self.head[token]
        self.logit, self.kept = products.sum(), 0.0
        relevance = torch.zeros_like(states)
        relevance[position] = products
        for layer, run in reversed(list(enumerate(runs))):
            relevance = self.back(run, layer, relevance)
        return relevance.sum(-1)

    def norm(self, x, name):
        return (
            x / (x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt() * self.weights[f"{name}.weight"]
        )

    def angles(self, length):
        size = self.config.head_dim
        speed = self.config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2).double() / size)
        angle = torch.arange(length).double()[:, None] * torch.cat([speed, speed])
        sign = torch.cat([-torch.ones(size // 2), torch.ones(size // 2)])
        return angle.cos(), angle.sin() * sign

    def block(self, x, layer):
        w = {part: self.weights[f"layers.{layer}.{part}.weight"] for part in PARTS}
        seen = self.norm(x, f"layers.{layer}.input_layernorm")
        length = len(x)
        q, k, v = (
            (seen @ w[f"self_attn.{name}_proj"].T).view(length, -1, self.config.head_dim).transpose(0, 1)
            for name in "qkv"
        )
        cos, sin = self.angles(length)
        turned = [part * cos + part.roll(part.shape[-1] // 2, -1) * sin for part in (q, k)]
        groups = len(q) // len(k)
        keys, values = turned[1].repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        seen_by = torch.ones(length, length).tril().bool()
        scores = turned[0] @ keys.transpose(1, 2) / self.config.head_dim**0.5
        shares = scores.masked_fill(~seen_by, -torch.inf).softmax(-1)
        mixed = shares @ values
        flat = mixed.transpose(0, 1).flatten(1)
        attended = flat @ w["self_attn.o_proj"].T
        middle = x + attended
        read = self.norm(middle, f"layers.{layer}.post_attention_layernorm")
        gate = nn.functional.silu(read @ w["mlp.gate_proj"].T)
        up = read @ w["mlp.up_proj"].T
        wide = gate * up
        out = middle + wide @ w["mlp.down_proj"].T
        return SimpleNamespace(**{name: value for name, value in locals().items() if name != "self"})

    def back(self, run, layer, relevance):
        w, x = run.w, run.x
        written = run.out - run.middle
        of_mlp = relevance * written / run.out
        of_wide = through_linear(run.wide, w["mlp.down_proj"], of_mlp)
        of_read = through_linear(run.read, w["mlp.gate_proj"], of_wide / 2)
        of_read = of_read + through_linear(run.read, w["mlp.up_proj"], of_wide / 2)
        relevance = relevance * run.middle / run.out + of_read

        of_attended = relevance * run.attended / run.middle
        of_flat = through_linear(run.flat, w["self_attn.o_proj"], of_attended)
        of_mixed = self.heads(of_flat)
        of_shares, of_values = through_product(run.shares, run.values, run.mixed, of_mixed)
        of_scores = run.scores * (of_shares - run.shares * of_shares.sum(-1, keepdim=True)) * run.seen_by
        self.kept += of_shares.sum() - of_scores.sum()
        scaled = run.keys.transpose(1, 2) / self.config.head_dim**0.5
        of_queries, of_keys = through_product(run.turned[0], scaled, run.scores, of_scores)
        of_keys = of_keys.transpose(1, 2)
        of_keys, of_values = (part.view(-1, run.groups, *part.shape[1:]).sum(1) for part in (of_keys, of_values))
        of_queries = unturned(run, run.q, run.turned[0], of_queries)
        of_keys = unturned(run, run.k, run.turned[1], of_keys)
        of_seen = sum(
            through_linear(run.seen, w[f"self_attn.{name}_proj"], part.transpose(0, 1).flatten(1))
            for name, part in zip("qkv", (of_queries, of_keys, of_values), strict=True)
        )
        return relevance * x / run.middle + of_seen

    def heads(self, flat):
        return flat.view(len(flat), -1, self.config.head_dim).transpose(0, 1)


PARTS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def through_linear(x, weight, relevance):
    """R_i = Σ_j x_i w_ji / z_j R_j."""
    return x * ((relevance / (x @ weight.T)) @ weight)


def unturned(run, before, after, relevance):
    """Through rotary embedding: each turned number is a sum of two."""
    share = relevance / after
    return before * run.cos * share + before * (run.sin * share).roll(-(before.shape[-1] // 2), -1)


def through_product(a, b, product, relevance):
    """Half to each factor of a matrix product, in proportion to the terms of its sums."""
    share = relevance / product / 2
    return a * (share @ b.transpose(1, 2)), b * (a.transpose(1, 2) @ share)


def entry_of(vlm, task):
    """[P, D] what enters the decoder, from a plain pass."""
    kept = []

    def keep(_module, _args, kwargs):
        kept.append(kwargs["inputs_embeds"][0])

    handle = vlm.model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    plain_logits(vlm, task)
    handle.remove()
    return kept[0]


class Angles(nn.Module):
    """Rotary embedding in float64."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, x, position_ids):
        speed = self.config.rope_parameters["rope_theta"] ** -(torch.arange(0, 1, 2 / self.config.head_dim).double())
        angle = position_ids[..., None].double() * torch.cat([speed, speed])
        return angle.cos(), angle.sin()


def exact_llava():
    """The random LLaVA in float64, without the float32 inside transformers' norms and angles."""
    model = random_llava().double()
    language = model.model.language_model
    config = model.config.text_config
    language.rotary_emb = Angles(config)
    for name, part in list(language.named_modules()):
        if type(part).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=torch.float64)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            language.set_submodule(name, norm.requires_grad_(False))
    return model.eval()


@pytest.fixture(scope="module")
def exact_vlm():
    torch.manual_seed(0)
    return lp.VLM(exact_llava(), llava_processor())


@pytest.fixture(scope="module")
def walked(exact_vlm):
    """Ours, theirs, and the walk, for the second token of an answer."""
    trace = exact_vlm.generate(photo(), QUESTION, max_new_tokens=3, capture=LEAN)
    task = prepared(exact_vlm, trace, "attnlrp", tokens=[trace.prompt_length + 1], of="logit")
    walk = Walked(exact_vlm.model)
    truth = walk.relevance(entry_of(exact_vlm, task), trace.prompt_length, trace.tokens[trace.prompt_length + 1].id)
    return SimpleNamespace(task=task, ours=attnlrp(task).positions[0], truth=truth, walk=walk)


def test_relevance_is_what_division_by_hand_gives(walked):
    torch.testing.assert_close(walked.ours, walked.truth, rtol=1e-9, atol=1e-9 * float(walked.truth.abs().max()))


def test_relevance_and_what_softmax_keeps_sum_to_the_logit(walked):
    assert abs(walked.walk.kept) > 1e-3 * abs(walked.walk.logit)  # else this would say nothing
    torch.testing.assert_close(walked.ours.sum() + walked.walk.kept, walked.walk.logit, rtol=1e-9, atol=1e-9)


def test_it_is_neither_the_plain_gradient_nor_zero_at_the_picture(walked):
    plain = lp.METHODS["input_x_gradient"].run(walked.task).positions[0]
    places = walked.task.places
    assert (walked.ours - plain)[places].abs().max() > 0.1 * walked.ours[places].abs().max() > 0


def test_without_attention_relevance_sums_to_the_logit():
    model = exact_llava()
    for block in model.model.language_model.layers:
        nn.init.zeros_(block.self_attn.o_proj.weight)
    vlm = lp.VLM(model, llava_processor())
    task = explained(vlm)
    logit = plain_logits(vlm, task)[0, task.answers[0][0]]
    torch.testing.assert_close(attnlrp(task).positions.sum(), logit, rtol=1e-9, atol=1e-9)


def test_checkpoints_change_nothing(exact_vlm):
    task = explained(exact_vlm, "generated")
    torch.testing.assert_close(attnlrp(task, checkpoint=True).positions, attnlrp(task).positions, rtol=0, atol=1e-12)


# --- what a module is ---


class Summed(nn.Module):
    """A sum over the sequence so far: each feature alone, but not each position."""

    def forward(self, x):
        return x.cumsum(-2)


class Swapped(nn.Module):
    """Homogeneous, and yet no norm: a vector of length one with its features in another order."""

    def forward(self, x):
        return x.flip(-1) / x.norm(dim=-1, keepdim=True)


NORMS = {
    "LayerNorm": nn.LayerNorm(16),
    "RMSNorm": nn.RMSNorm(16, eps=1e-6),
    "Gemma3RMSNorm": Gemma3RMSNorm(16),
    "Cohere2LayerNorm": Cohere2LayerNorm(16),
    "Llama4TextL2Norm": Llama4TextL2Norm(),
    "RMSNorm without weights": nn.RMSNorm(16, elementwise_affine=False),
}
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "tanh", "mish")


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_norm_is_told_by_what_it_does(name, dtype):
    norm = NORMS[name].to(dtype)
    for weight in norm.parameters():
        nn.init.normal_(weight)
    rule = rule_of(norm, torch.randn(1, 3, 16, dtype=dtype))
    assert rule is not None
    assert rule.norm
    assert rule.centred == name.endswith("LayerNorm")
    assert (rule.rest is not None) == (name == "LayerNorm")


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_a_linear_layer_once_its_length_is_known(name):
    norm = NORMS[name].double()
    for weight in norm.parameters():
        nn.init.normal_(weight)
    x = torch.randn(5, 16, dtype=torch.float64, requires_grad=True)
    output = _Ruled().applied(norm, (x,), norm(x))
    seed = torch.randn_like(output)
    (slope,) = torch.autograd.grad(output, x, seed)
    bias = norm(torch.zeros_like(x))
    matrices = []  # of the linear layer that each row's norm is
    for row, value in zip(x.detach(), (output - bias).detach(), strict=True):
        centring = torch.eye(16, dtype=torch.float64) - (1 / 16 if name.endswith("LayerNorm") else 0)
        matrices.append((value / (centring @ row))[:, None] * centring)
    expected = torch.stack([matrix.T @ one for matrix, one in zip(matrices, seed, strict=True)])
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((x * slope).sum(), ((output - bias) * seed).sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_told_by_what_it_does(name):
    rule = rule_of(ACT2FN[name], torch.randn(1, 3, 16))
    assert rule is not None
    assert not rule.norm


@pytest.mark.parametrize(
    "module",
    [nn.Sigmoid(), nn.Softplus(), nn.Softmax(-1), Summed(), Swapped()],
    ids=lambda module: type(module).__name__,
)
def test_what_is_neither_has_no_rule(module):
    with torch.no_grad():
        assert rule_of(module, torch.randn(1, 3, 16)) is None


# --- what is left behind ---


def leftovers(model):
    """Hooks of ours, and forwards that are not their class's; transformers leaves hooks of its own where it records."""
    return [
        type(module).__name__
        for module in model.modules()
        if "forward" in module.__dict__
        or any(
            hook.__module__.startswith("llava_probe")
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        )
    ]


def test_the_model_is_as_before(random_vlm):
    task = explained(random_vlm)
    before, table = plain_logits(random_vlm, task), dict(AttentionInterface._global_mapping)
    attnlrp(task)
    assert leftovers(random_vlm.model) == []
    assert torch.equal(plain_logits(random_vlm, task), before)
    assert dict(AttentionInterface._global_mapping) == table


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_module_and_leaves_the_model_as_before(name):
    vlm = zoo.vlm(name)
    task = explained(vlm)
    before = plain_logits(vlm, task)
    with pytest.raises(lp.errors.BadModel, match=f"AttnLRP has no rule for .* in {REFUSED[name]}"):
        attnlrp(task)
    assert leftovers(vlm.model) == []
    assert torch.equal(plain_logits(vlm, task), before)


def test_the_forward_pass_is_the_plain_one(random_vlm):
    task = explained(random_vlm)
    with forward(task, 0, Propagating()) as run:
        assert torch.equal(run.logits[0], plain_logits(random_vlm, task))


def test_eager_attention_is_refused_with_what_to_type():
    vlm = lp.VLM(random_llava(attention="eager"), llava_processor())
    with pytest.raises(lp.errors.BadModel, match=r"LlamaAttention .*set_attn_implementation\('sdpa'\)"):
        attnlrp(explained(vlm))


def test_capped_attention_is_refused(random_vlm):
    task = explained(random_vlm)
    for module in random_vlm.anatomy.decoder.attentions:
        module.forward = partial(module.forward, softcap=50.0)
    with pytest.raises(lp.errors.BadModel, match="no rule for softcap in LlamaAttention"):
        attnlrp(task)


def change(state):
    return state + 1


def multiply(state):
    return state * state.mean(-1, keepdim=True)


@pytest.mark.parametrize("done", [change, multiply, torch.sin], ids=lambda done: done.__name__)
def test_what_a_block_does_beside_its_modules_is_seen(random_vlm, done):
    task = explained(random_vlm)
    block = random_vlm.anatomy.decoder.blocks[1]
    own = block.forward
    block.forward = lambda *args, **kwargs: done(own(*args, **kwargs)) + own(*args, **kwargs)
    with pytest.raises(lp.errors.BadModel, match=r"no rule for .* in Llama"):
        attnlrp(task)


# --- families ---


def outcome(name):
    """Whether a family is covered: finite relevance of every position, or a refusal."""
    vlm = zoo.vlm(name)
    try:
        task = explained(vlm)
    except lp.errors.BadInput:  # no places for its visual tokens
        return False
    try:
        found = attnlrp(task)
    except lp.errors.BadModel:
        return False
    finally:
        assert leftovers(vlm.model) == []
    assert torch.isfinite(found.positions).all() and found.positions.any()
    return True


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_family_is_covered_or_refused(name):
    assert outcome(name) == (name in COVERED)


def test_the_covered_are_listed_in_order():
    assert sorted(COVERED) == COVERED
    assert set(COVERED) <= zoo.WRITTEN


@contextmanager
def nothing_attended(vlm):
    """A kernel that gives zeros, so that neither softmax nor the picture's neighbours have a part."""

    def nothing(module, query, key, value, mask, **_):
        return (0 * query[..., :1]).expand(*query.shape[:3], value.shape[-1]).transpose(1, 2).contiguous(), None

    owner = vlm.anatomy.decoder.owner
    before = owner.config._attn_implementation
    AttentionInterface.register("nothing", nothing)
    AttentionMaskInterface.register("nothing", sdpa_mask)
    try:
        owner.set_attn_implementation("nothing")
        yield
    finally:
        owner.set_attn_implementation(before)
        del AttentionInterface._global_mapping["nothing"], AttentionMaskInterface._global_mapping["nothing"]


@pytest.mark.parametrize("name", COVERED)
def test_without_attention_each_family_sums_to_its_logit(name):
    vlm = zoo.vlm(name)
    with nothing_attended(vlm):
        task = explained(vlm)
        logit = plain_logits(vlm, task)[0, task.answers[0][0]]
        total = attnlrp(task).positions.sum()
    torch.testing.assert_close(total.float(), logit, rtol=1e-3, atol=1e-3)
