"""A logit's parts are what the formula gives, they sum to it, and what heads read sums to the heads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import llava_probe as lp
from llava_probe.inside.tolerance import SUMS
from tests import zoo
from tests.models import llava_processor, photo, random_llava

PROMPT = "USER: <image>\nwhat is the text on the stop sign\nASSISTANT:"
LEAN = lp.Capture(attention=False, hidden_states=False, scores=False)


@pytest.fixture(scope="module")
def vlm() -> lp.VLM:
    return lp.VLM(random_llava(), llava_processor())


@pytest.fixture(scope="module")
def trace(vlm) -> lp.Trace:
    return vlm.generate(photo(), "what is the text on the stop sign", max_new_tokens=5, capture=LEAN)


def asked(trace: lp.Trace, step: int = 2) -> int:
    """The position of a generated token."""
    return trace.prompt_length + step


def everything(written) -> float:
    """The sum of all parts."""
    summed = written.heads.sum() + written.mlp.sum() + written.other.sum() + written.biases.sum()
    return written.embedding + float(summed)


# --- the formula ---


class Naive:
    """Parts of a logit by the formula of direct logit attribution: states, eager weights, and matrices by name.

    ``gemma``: norms weigh by 1 + w, and stand behind attention and MLP too.
    """

    def __init__(self, model, inputs, token: int, gemma: bool = False) -> None:
        self.gemma, decoder = gemma, model.model.language_model
        model.set_attn_implementation("eager")
        with torch.no_grad():
            out = model(**inputs, output_hidden_states=True, output_attentions=True)
            states, last = [state[0] for state in out.hidden_states], []
            for layer, block in enumerate(decoder.layers):
                last.append(self.block(block, states[layer], out.attentions[layer][0, :, -1]))
            x = states[len(last) - 1][-1] + last[-1]["attention"] + last[-1]["mlp"]
            torch.testing.assert_close(self.norm(x, decoder.norm), states[-1][-1], rtol=1e-4, atol=1e-4)
            self.u = model.lm_head.weight[token] * self.factor(x, decoder.norm)
        self.embedding = states[0][-1] @ self.u
        self.mlp = torch.stack([each["mlp"] @ self.u for each in last])
        self.keys = torch.stack([each["read"] @ self.u for each in last])  # [L, H, K]

    def factor(self, x, norm):
        """What a norm multiplies each number by."""
        eps = norm.eps if self.gemma else norm.variance_epsilon
        return (norm.weight + self.gemma) / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    def norm(self, x, norm):
        return x * self.factor(x, norm)

    def block(self, block, x, weights):
        """What a block adds at the last position: by its MLP and its attention [D], and each head and key [H, K, D]."""
        heads, attention = len(weights), block.self_attn
        value = nn.functional.linear(self.norm(x, block.input_layernorm), attention.v_proj.weight)
        value = value.view(len(x), -1, value.shape[1] // attention.config.num_key_value_heads)
        value = value.repeat_interleave(heads // value.shape[1], 1)  # [K, H, d]
        out = attention.o_proj.weight.view(-1, heads, value.shape[2])  # [D, H, d]
        read = torch.einsum("hk,khd,ohd->hko", weights, value, out)
        added = read.sum((0, 1))
        if self.gemma:
            factor = self.factor(added, block.post_attention_layernorm)
            read, added = read * factor, added * factor
        middle, mlp = x[-1] + added, block.mlp
        before = block.pre_feedforward_layernorm if self.gemma else block.post_attention_layernorm
        given = self.norm(middle, before)
        wide = mlp.act_fn(mlp.gate_proj.weight @ given) * (mlp.up_proj.weight @ given)
        fed = mlp.down_proj.weight @ wide
        return {
            "read": read,
            "attention": added,
            "mlp": self.norm(fed, block.post_feedforward_layernorm) if self.gemma else fed,
        }


@pytest.mark.parametrize("kv_heads", [4, 2], ids=["a key a head", "shared keys"])
def test_parts_are_what_the_formula_gives(kv_heads):
    model = random_llava(kv_heads=kv_heads)
    vlm = lp.VLM(model, llava_processor())
    trace = vlm.generate(photo(), prompt=PROMPT, max_new_tokens=4, capture=LEAN)
    written = lp.written_by(vlm, trace, asked(trace, 3))
    said = torch.tensor([trace.generated_ids[:3].tolist()])
    inputs = dict(llava_processor()(text=PROMPT, images=photo(), return_tensors="pt"))
    inputs["input_ids"] = torch.cat([inputs["input_ids"], said], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    naive = Naive(model, inputs, written.token.id)
    agree(written, naive)
    assert written.logit == pytest.approx(float(trace.logits[3, written.token.id]), abs=1e-4)


def test_norms_behind_the_parts_and_a_cap_are_in_the_formula_too():
    model, processor = zoo.build("paligemma gemma2")
    vlm = lp.VLM(model, processor)
    trace = vlm.generate(photo(), "What is this?", max_new_tokens=1, capture=LEAN)
    written = lp.written_by(vlm, trace, trace.prompt_length)
    inputs, _ = vlm.model_inputs(photo(), "What is this?")
    agree(written, Naive(model, inputs, written.token.id, gemma=True))
    cap = model.config.text_config.final_logit_softcapping
    assert written.capped == pytest.approx(cap * float(torch.tensor(written.logit / cap).tanh()), rel=1e-5)
    assert written.capped == pytest.approx(float(trace.logits[0, written.token.id]), rel=1e-5)


def agree(written, naive) -> None:
    """Each part, and what each head read at each position."""
    for name in ("keys", "mlp"):
        torch.testing.assert_close(getattr(written, name).float(), getattr(naive, name), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(written.heads.float(), naive.keys.sum(-1), rtol=1e-3, atol=1e-4)
    assert written.embedding == pytest.approx(float(naive.embedding), abs=1e-4)
    assert everything(written) == pytest.approx(written.logit, rel=1e-4)


# --- sums ---


def test_the_split_of_a_difference_is_the_difference_of_two(vlm, trace):
    """The other word's own split is of a trace in which it was said: the row that predicts is the same."""
    place, other = asked(trace), 77
    ids = [*trace.generated_ids[:2].tolist(), other]
    both = lp.written_by(vlm, trace, place, contrast=other)
    one, two = lp.written_by(vlm, trace, place), lp.written_by(vlm, vlm.rerun(trace, answer=ids), place)
    assert two.token.id == other
    for name in ("heads", "mlp", "keys", "biases"):
        difference = getattr(one, name) - getattr(two, name)
        torch.testing.assert_close(getattr(both, name), difference, rtol=0, atol=1e-5)
    assert both.logit == pytest.approx(one.logit - two.logit, abs=1e-5)


def test_a_word_is_weighed_against_another_by_its_first_token(vlm, trace):
    written = lp.written_by(vlm, trace, asked(trace, 1), contrast="stop sign")
    first = vlm.processor.tokenizer(" stop sign", add_special_tokens=False).input_ids[0]
    assert written.contrast == "stop sign"
    assert written.logit == lp.written_by(vlm, trace, asked(trace, 1), contrast=first).logit


def test_a_heads_map_sums_to_what_it_gave_from_the_picture(vlm, trace):
    written = lp.written_by(vlm, trace, asked(trace))
    for layer in written.layers:
        for head in range(4):
            m = written.map(layer, head)
            assert float(m.values.sum()) == pytest.approx(float(written.part("image")[layer, head]), abs=1e-5)
            assert float(m.values.sum() + m.text.sum()) == pytest.approx(float(written.heads[layer, head]), abs=1e-5)
    assert float(written.map().values.sum()) == pytest.approx(written.read()["image"], abs=1e-5)
    assert float(written.map(layer=1).values.sum()) == pytest.approx(float(written.part("image")[1].sum()), abs=1e-5)
    assert bool((written.map().values < 0).any())


def test_maps_of_two_pictures_sum_to_what_was_read_off_both(vlm):
    prompt = "USER: <image>\n<image>\nwhat is the text\nASSISTANT:"
    trace = vlm.generate([photo(), photo(seed=1)], prompt=prompt, max_new_tokens=1, capture=LEAN)
    written = lp.written_by(vlm, trace, -1)
    first, second = (float(written.map(image=image).values.sum()) for image in (0, 1))
    assert first + second == pytest.approx(written.read()["image"], abs=1e-5)
    assert abs(first - second) > 1e-3


def test_each_position_is_read_from_one_source(vlm, trace):
    written = lp.written_by(vlm, trace, asked(trace))
    assert [written.sources.count(name) for name in ("image", "first", "answer")] == [36, 1, 2]
    asked_for = [
        token.text for token, source in zip(written.tokens, written.sources, strict=True) if source == "question"
    ]
    assert "".join(asked_for).strip() == "what is the text on the stop sign"
    summed = sum(written.part(name) for name in ("image", "question", "template", "first", "answer"))
    torch.testing.assert_close(summed, written.keys.sum(-1))


def test_a_member_of_a_batch_is_split_as_it_is_alone(vlm, tmp_path):
    """From a file too: the prompt of the member is prepared again."""
    asked_for = [(photo(), "what is this"), (photo(seed=1), "what is the text on the stop sign")]
    member = vlm.generate_batch(asked_for, max_new_tokens=3, capture=LEAN)[0]
    alone = vlm.generate(*asked_for[0], max_new_tokens=3, capture=LEAN)
    kept = lp.Trace.load(member.save(tmp_path / "member.trace"))
    for trace in (member, kept):
        written = lp.written_by(vlm, trace, -1)
        torch.testing.assert_close(written.keys, lp.written_by(vlm, alone, -1).keys)
        assert written.logit == pytest.approx(float(member.logits[-1, written.token.id]), abs=1e-4)


def test_beams_are_split_along_what_they_said(vlm):
    trace = vlm.generate(photo(), "what is this", max_new_tokens=4, num_beams=3, num_return_sequences=2, capture=LEAN)
    for each in (trace, *trace.alternatives):
        written = lp.written_by(vlm, each, -1)
        assert written.logit == pytest.approx(float(each.logits[-1, written.token.id]), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parts_sum_in_half_precision_within_its_rounding(dtype):
    vlm = lp.VLM(random_llava().to(dtype), llava_processor())
    trace = vlm.generate(photo(), prompt=PROMPT, max_new_tokens=3, capture=LEAN)
    written = lp.written_by(vlm, trace, -1)
    assert written.residual < SUMS[dtype] / 2
    assert abs(everything(written) - written.logit) <= written.residual * 1.01 * max(1, abs(written.logit))


# --- what else is in a model ---


def test_biases_are_told_apart():
    model, processor = zoo.build("blip-2")
    decoder = model.language_model.model.decoder
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(weight, std=0.3)
    vlm = lp.VLM(model, processor)
    trace = vlm.generate(photo(), "What is this?", max_new_tokens=1, capture=LEAN)
    written = lp.written_by(vlm, trace, -1)
    row = model.get_output_embeddings().weight[written.token.id]
    assert float(written.biases[-1]) == pytest.approx(float((row @ decoder.final_layer_norm.bias).detach()), abs=1e-4)
    assert (written.biases[:-1] != 0).all()  # of the attention's output
    assert everything(written) == pytest.approx(written.logit, rel=1e-4)
    assert any(part.kind == "bias" and part.layer is None for part in written.parts())


def test_an_adapter_counts_as_the_weights_that_it_is_merged_into():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["o_proj", "down_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(random_llava(), config).eval()
    merged = copy.deepcopy(adapted).merge_and_unload()
    one, other = lp.VLM(adapted, llava_processor()), lp.VLM(merged, llava_processor())
    trace = one.generate(photo(), prompt=PROMPT, max_new_tokens=2, capture=LEAN)
    with pytest.warns(UserWarning, match="another model made this trace"):
        plain = lp.written_by(other, trace, -1)
    written = lp.written_by(one, trace, -1)
    torch.testing.assert_close(written.keys, plain.keys, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(written.mlp, plain.mlp, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("part", "sentence"),
    [("o_proj", "lets no gradient"), ("lm_head", "no slope comes back")],
    ids=["of attention", "of the vocabulary"],
)
def test_projections_without_a_slope_are_refused(random_vlm, part, sentence):
    trace = random_vlm.generate(photo(), prompt=PROMPT, max_new_tokens=1, capture=LEAN)
    names = {name for name, _ in random_vlm.model.named_modules() if name.rpartition(".")[2] == part}
    model = torch.ao.quantization.quantize_dynamic(random_vlm.model, names, dtype=torch.qint8)
    with pytest.raises(lp.BadModel, match=sentence):
        lp.written_by(lp.VLM(model, random_vlm.processor), trace, -1)


@pytest.mark.filterwarnings("ignore")
def test_blocks_that_are_computed_again_are_refused(random_vlm):
    trace = random_vlm.generate(photo(), prompt=PROMPT, max_new_tokens=1, capture=LEAN)
    random_vlm.model.gradient_checkpointing_enable()
    random_vlm.model.train()
    with pytest.raises(lp.BadModel, match="gradient checkpointing"):
        lp.written_by(random_vlm, trace, -1)
    random_vlm.model.eval()
    assert lp.written_by(random_vlm, trace, -1).residual < SUMS[torch.float32]


def test_sinks_are_named(random_vlm):
    """Massive in one dimension, as the first token is: planted behind the second block."""
    places = [0, 7, 20]

    def plant(_module, _args, output):
        output[:, places, 11] += 1e4
        return output

    random_vlm.model.model.language_model.layers[1].register_forward_hook(plant)
    capture = lp.Capture(positions=["predicting", "image", 0])
    trace = random_vlm.generate(photo(), prompt=PROMPT, max_new_tokens=1, capture=capture)
    written = lp.written_by(random_vlm, trace, -1)
    assert written.sinks == (7, 20) == tuple(lp.sinks(trace).positions.tolist())
    torch.testing.assert_close(written.part("sinks"), written.keys[..., [7, 20]].sum(-1))
    assert written.map().marked[0].nonzero().flatten().tolist() == [4, 17]
    assert "sinks" in written.table()


# --- under interventions ---


def test_what_is_cut_is_not_read(vlm, trace):
    with lp.knock_out(vlm, keys="image", layers=[1, 2]):
        written = lp.written_by(vlm, trace, asked(trace))
    read = written.part("image").abs().sum(1)
    assert read[[1, 2]].tolist() == [0, 0]
    assert (read[[0, 3]] > 0).all()
    assert written.about["interventions"][0]["kind"] == "knock_out"


def test_an_answer_that_was_given_under_an_intervention_is_split_under_it_or_that_is_told(vlm, trace):
    with lp.knock_out(vlm, keys="image", layers=[1, 2]):
        cut = vlm.score(photo(), trace.question, trace.generated_ids, capture=lp.Capture(attention=False))
        assert lp.written_by(vlm, cut, -2).logit == pytest.approx(float(cut.logits[-2, cut.generated[-2].id]), rel=1e-4)
    with pytest.warns(UserWarning, match="made under interventions that are not in force now"):
        lp.written_by(vlm, cut, -2)


def test_a_head_whose_output_is_anothers_read_nothing(vlm, trace):
    with lp.ablate(vlm, heads={1: [2]}):
        written = lp.written_by(vlm, trace, asked(trace))
    assert not written.keys[1, 2].any()
    assert everything(written) == pytest.approx(written.logit, rel=1e-4)


def test_what_no_part_wrote_is_refused(vlm, trace):
    with lp.steer(vlm, torch.ones(64), layers=[2]), pytest.raises(lp.BadModel, match="that no part wrote"):
        lp.written_by(vlm, trace, asked(trace))


def test_a_stream_that_is_mixed_by_what_is_in_it_is_refused_though_its_slopes_sum_up(random_vlm):
    """Scaled by its own direction it is still homogeneous, so leaves times slopes give the logit (Euler), wrongly."""

    def mix(_module, _args, output):
        return output * (1 + output[..., :1] / output.norm(dim=-1, keepdim=True))

    random_vlm.model.model.language_model.layers[1].register_forward_hook(mix)
    trace = random_vlm.generate(photo(), prompt=PROMPT, max_new_tokens=1, capture=LEAN)
    with pytest.raises(lp.BadModel, match="no sum of its parts"):
        lp.written_by(random_vlm, trace, -1)


def test_nothing_is_left_of_it(vlm, trace):
    before = vlm.rerun(trace).logits
    lp.written_by(vlm, trace, asked(trace))
    assert torch.is_grad_enabled()
    assert all(parameter.requires_grad for parameter in vlm.model.parameters())
    assert torch.equal(vlm.rerun(trace).logits, before)


# --- reading it ---


def test_tables_name_the_largest_parts_and_sum_up(vlm, trace):
    written = lp.written_by(vlm, trace, asked(trace))
    largest = max(written.parts(), key=lambda part: abs(part.value))
    lines = written.table(3).splitlines()
    assert lines[1].startswith(str(largest))
    assert len(lines) == 6
    assert f"{written.logit:.4f}" in lines[-1]
    values = written._table(3).data["logit"]
    assert sum(values[:-1]) == pytest.approx(written.logit)
    assert sum(part.value for part in written.parts()) == pytest.approx(written.logit, rel=1e-4)
    frame = written.to_pandas()
    assert list(frame.columns[:4]) == ["part", "layer", "head", "logit"]
    assert len(frame) == len(written.parts()) == 1 + 16 + 4
    assert written.to_dict()["heads"] == written.heads.tolist()


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"token": "stop"}, lp.OutOfRange, r"names 'stop' at position \d+, in the prompt"),
        ({"token": 10**6}, lp.OutOfRange, "position 1000000 is not there"),
        ({"token": "zebra"}, lp.OutOfRange, "neither a word of"),
        ({"token": [1]}, lp.BadInput, "token="),
        ({"contrast": 10**6}, lp.OutOfRange, "this model has ids 0 to"),
        ({"contrast": ""}, lp.BadInput, "empty"),
        ({"contrast": "<image>"}, lp.BadInput, "stands for a picture"),
    ],
    ids=["in the prompt", "a position", "a word", "a list", "an id", "no word", "a picture"],
)
def test_wrong_words_are_refused(vlm, trace, given, error, sentence):
    with pytest.raises(error, match=sentence):
        lp.written_by(vlm, trace, **{"token": asked(trace), **given})


def test_a_word_against_itself_is_refused(vlm, trace):
    own = int(trace.generated_ids[2])
    with pytest.raises(lp.BadInput, match=r"begins with .* as the word itself does"):
        lp.written_by(vlm, trace, asked(trace), contrast=own)


def test_wrong_layers_heads_and_sources_are_refused(vlm, trace):
    written = lp.written_by(vlm, trace, asked(trace))
    with pytest.raises(lp.OutOfRange, match="layer 9 has no heads"):
        written.map(layer=9)
    with pytest.raises(lp.OutOfRange, match="heads 0 to 3"):
        written.map(layer=1, head=4)
    with pytest.raises(lp.OutOfRange, match="picture 2 is not there"):
        written.map(image=2)
    with pytest.raises(lp.BadInput, match="image, question, template"):
        written.part("picture")
