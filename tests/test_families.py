"""Capture tells the truth in every family: each claim, tried on a tiny random model of each with its real processor.

The oracle is transformers alone: a plain ``generate`` with its own recorders, and one teacher-forced pass of a copy
under eager attention. A family that cannot fulfil a claim stands in ``EXCEPT`` with the reason, and fails the test
the day it can.
"""

import copy
from collections import Counter
from functools import cache

import pytest
import torch
from transformers import AttentionInterface, Pix2StructConfig, Pix2StructForConditionalGeneration
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    apply_rotary_pos_emb,
    eager_attention_forward,
    repeat_kv,
)

import llava_probe as lp
from llava_probe.asking.recorder import recording
from tests import torchvision_half, zoo
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text"
NEW = 4
EVERYTHING = lp.Capture(positions="all", attention_positions="all")

_BESIDE = "its prompts have no place for a picture: it is put beside the prompt, one for each"

EXCEPT: dict[str, dict[str, str]] = {
    "rows": {},
    "tokens": {},
    "batch": {
        "blip": "its own generate writes a start token over the first place of the batch, padding or not",
        "blip-2": "its processor puts the padding between picture and text; refused in one sentence",
        "instructblip": "its processor puts the padding between picture and text; refused in one sentence",
        "emu3": "its processor pads pictures to the largest of the batch and codes them so: plain generate differs too",
        "hunyuan_vl": "counts padding into its rotary places: plain generate differs too",
        "kosmos-2": "counts padding into its places after the first step: plain generate differs too",
        "kosmos-2.5": "counts padding into its places: plain generate differs too",
        "llama4": "anchors its chunks and temperatures at places with padding: plain generate differs too",
        "minimax_m3_vl": "anchors its key blocks at places with padding: plain generate differs too",
    },
    "two": dict.fromkeys(("blip", "blip-2", "instructblip", "git", "kosmos-2", "kosmos-2.5", "fuyu"), _BESIDE),
    "lens": {"idefics": "its language model does not run on words alone; refused in one sentence"},
    "score": {
        "blip": "its own generate leaves out the prompt's last token and writes over its first; its forward does not"
    },
}

#: Families whose rows do not sum to one, and where the rest goes.
SHORT = {"git": "to the picture, which stands ahead of the prompt", "inkling2": "to the attention sinks"}

#: Families whose layers carry several streams: a hidden state is no one vector before the last norm.
STREAMS = ("glm5_next", "qwen4_exp")

#: Families whose blocks do not all have the same number of heads.
HEADS_DIFFER = ("step3p7",)

pytestmark = [
    pytest.mark.skipif(not torchvision_half.present(), reason="the processors of most families need torchvision"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def families(claim):
    """Every family, those that cannot fulfil the claim marked with the reason."""
    excepted = EXCEPT[claim]
    assert set(excepted) <= zoo.WRITTEN, set(excepted) - zoo.WRITTEN
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=excepted[name]))
            if name in excepted
            else name
            for name in zoo.NAMES
        ],
    )


vlm = zoo.unplaced


def words_only(name):
    """Settings under which a random model answers in words: a mark of a picture in an answer would be read as one."""
    return {"max_new_tokens": NEW, "suppress_tokens": vlm(name).processor.tokenizer.all_special_ids}


@cache
def asked(name):
    return vlm(name).generate(photo(), QUESTION, capture=EVERYTHING, **words_only(name))


def plain(name, image=None, **kwargs):
    """What transformers alone generates: nothing of ours in it."""
    inputs, _ = vlm(name).model_inputs(photo() if image is None else image, QUESTION)
    return vlm(name).model.generate(**inputs, return_dict_in_generate=True, **words_only(name), **kwargs)


class Nothing(dict):
    """No earlier output: a model that would take something over from it finds None."""

    def __getattr__(self, name):
        return None


def eager_pass(name, trace):
    """The decoder's own output in one eager pass over prompt and answer, of a copy of the model."""
    inside = vlm(name).anatomy
    inputs, _ = vlm(name).model_inputs(photo(), QUESTION)
    ids = torch.tensor([[token.id for token in trace.tokens[:-1]]])
    prompt = inputs["input_ids"].shape
    extended = {**inputs, "use_cache": False}
    for _ in range(ids.shape[1] - prompt[1]):
        extended = inside.model._update_model_kwargs_for_generation(Nothing(), extended, is_encoder_decoder=False)
    for key, value in extended.items():
        if torch.is_tensor(value) and value.shape == prompt:
            extended[key] = torch.nn.functional.pad(value, (0, ids.shape[1] - prompt[1]))
    extended = {key: value for key, value in extended.items() if value is not None} | {"input_ids": ids}
    model = copy.deepcopy(inside.model)
    model.set_attn_implementation("eager")
    [place] = [key for key, module in inside.model.named_modules() if module is inside.decoder.owner]
    decoder = model.get_submodule(place)
    decoder.config.output_attentions = decoder.config.output_hidden_states = True
    found = []
    decoder.register_forward_hook(lambda _module, _args, output: found.append(output))
    with torch.no_grad():
        logits = model(**extended, output_attentions=True, output_hidden_states=True).logits
    return found[-1], logits


def rows_by_layer(name, output):
    """[1, H, Q, K] by block, of transformers' list of the blocks with attention (to the prompt or to a picture)."""
    given = [rows for rows in output.attentions if rows is not None]
    inside = vlm(name).anatomy
    layers = range(inside.layers) if len(given) == inside.layers else sorted(inside.head_counts)
    return dict(zip(layers, given, strict=True))


@families("rows")
def test_rows_equal_one_eager_pass(name):
    trace = asked(name)
    output, logits = eager_pass(name, trace)
    queries, keys = trace.records["attention"].shape[0], trace.records["attention"].shape[-1]
    assert queries == keys == len(trace.tokens) - 1
    eager = rows_by_layer(name, output)
    for column, layer in enumerate(trace.attention_layers):
        whole = eager[layer][0, :, -queries:, -keys:].transpose(0, 1)
        torch.testing.assert_close(trace.records["attention"][:, column], whole, atol=1e-5, rtol=0)
    spread = float(trace.logits.std())
    torch.testing.assert_close(trace.logits / spread, logits[0, -NEW:] / spread, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", HEADS_DIFFER)
def test_layers_of_another_number_of_heads_are_captured_apart(name):
    inside, whole = vlm(name).anatomy, asked(name)
    others = sorted(set(inside.head_counts) - set(whole.attention_layers))
    capture = lp.Capture(attention_layers=others, attention_positions="all")
    trace = vlm(name).generate(photo(), QUESTION, capture=capture, **words_only(name))
    assert trace.attention_layers == tuple(others)
    eager = rows_by_layer(name, eager_pass(name, trace)[0])
    for column, layer in enumerate(others):
        torch.testing.assert_close(
            trace.records["attention"][:, column], eager[layer][0].transpose(0, 1), atol=1e-5, rtol=0
        )
    with pytest.raises(lp.OutOfRange, match="different numbers of heads"):
        vlm(name).generate(photo(), QUESTION, capture=lp.Capture(attention_layers=sorted(inside.head_counts)))


@families("tokens")
def test_tokens_logits_and_states_are_those_of_a_plain_generate(name):
    trace = asked(name)
    own = plain(name, do_sample=False, output_logits=True, output_hidden_states=True)
    assert trace.generated_ids.tolist() == own.sequences[0, -NEW:].tolist()
    assert torch.equal(trace.logits, torch.cat([step.float() for step in own.logits]))
    for column, layer in enumerate(trace.hidden_layers):
        steps = torch.cat([step[layer][0] for step in own.hidden_states])
        assert torch.equal(trace.records["hidden"][:, column], steps[-len(trace.hidden_positions) :])
    default = vlm(name).generate(photo(), QUESTION, **words_only(name))
    assert default.generated_ids.tolist() == trace.generated_ids.tolist()
    torch.testing.assert_close(default.attention, trace.attention, atol=1e-5, rtol=0)
    torch.manual_seed(7)
    drawn = plain(name, do_sample=True)
    again = vlm(name).generate(photo(), QUESTION, seed=7, do_sample=True, **words_only(name))
    assert again.generated_ids.tolist() == drawn.sequences[0, -NEW:].tolist()


@families("batch")
def test_batch_members_equal_themselves_alone(name):
    samples = [
        (photo(), QUESTION),
        (photo(70, 150, 1), "where"),
        (photo(150, 80, 2), "look at this red circle and the blue square what is on the sign"),
    ]
    batch = vlm(name).generate_batch(samples, **words_only(name))
    for (image, question), together in zip(samples, batch, strict=True):
        alone = vlm(name).generate(image, question, **words_only(name))
        assert together.tokens == alone.tokens
        torch.testing.assert_close(together.attention, alone.attention, atol=1e-5, rtol=0)
        for kind in ("logits", "hidden"):
            spread = float(alone.records[kind].std())
            torch.testing.assert_close(
                together.records[kind] / spread, alone.records[kind] / spread, atol=1e-4, rtol=1e-4
            )


@families("two")
def test_two_pictures_in_one_prompt_are_both_looked_at(name):
    one, other, third = photo(), photo(70, 150, 1), photo(70, 150, 2)
    trace = vlm(name).generate([one, other], QUESTION, **words_only(name))
    assert len(trace.images) == 2
    changed = vlm(name).generate([one, third], QUESTION, **words_only(name))
    assert not torch.equal(trace.logits[0], changed.logits[0])
    assert trace.prompt_length == changed.prompt_length
    scored = vlm(name).score([one, other], QUESTION, trace.generated_ids)
    torch.testing.assert_close(scored.attention, trace.attention, atol=1e-5, rtol=0)


@families("score")
def test_the_scored_answer_has_the_rows_of_the_generated_one(name):
    trace = asked(name)
    scored = vlm(name).score(photo(), QUESTION, trace.generated_ids, capture=EVERYTHING)
    assert scored.tokens == trace.tokens
    torch.testing.assert_close(scored.records["attention"], trace.records["attention"], atol=1e-5, rtol=0)
    spread = float(trace.logits.std())
    torch.testing.assert_close(scored.logits / spread, trace.logits / spread, atol=1e-4, rtol=0)


def look(model):
    """All of a model that a run could leave changed, and transformers' table of kernels."""
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    configs = [str(part.config) for part in model.modules() if hasattr(part, "config")]
    return hooks, configs, dict(AttentionInterface._global_mapping)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_model_is_given_back_as_it_was(name):
    asked(name)
    before = look(vlm(name).model)
    vlm(name).generate(photo(), QUESTION, max_new_tokens=2)
    assert look(vlm(name).model) == before
    with pytest.raises(ZeroDivisionError), recording(vlm(name).anatomy, *_plan(name)):
        raise ZeroDivisionError
    assert look(vlm(name).model) == before


def _plan(name):
    _, prompts = vlm(name).prepare([vlm(name).model_inputs(photo(), QUESTION)[1]], {})
    return vlm(name)._plan(lp.Capture()), prompts


@pytest.mark.parametrize("name", zoo.NAMES)
def test_rows_are_of_the_layers_with_attention_and_the_others_are_listed(name):
    inside, trace = vlm(name).anatomy, asked(name)
    assert sorted([*inside.head_counts, *inside.other_layers]) == list(range(inside.layers))
    rows = trace.records["attention"].float().sum(-1)
    assert float(rows.max()) <= 1 + 1e-5
    assert (float(rows.min()) >= 1 - 1e-5) == (name not in SHORT)
    usual = Counter(inside.head_counts.values()).most_common(1)[0][0]
    assert trace.attention_layers == tuple(layer for layer, count in inside.head_counts.items() if count == usual)
    assert trace.sizes.other_layers == inside.other_layers
    if inside.other_layers:
        assert f"{inside.layers} layers ({len(inside.head_counts)} with attention)" in repr(vlm(name))
    for layer, kind in inside.other_layers.items():
        with pytest.raises(lp.OutOfRange, match=f"layer {layer} has no attention rows.*{kind}"):
            vlm(name).generate(photo(), QUESTION, capture=lp.Capture(attention_layers=[layer]))


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_question_is_found_in_every_template(name):
    trace = asked(name)
    assert trace.question == QUESTION
    places = trace.positions(lp.QUESTION)
    assert "".join(trace.tokens[place].text for place in places).strip() == QUESTION
    assert {trace.tokens[place].role for place in places} == {"prompt"}


@pytest.mark.parametrize("name", zoo.NAMES)
def test_hidden_states_of_several_streams_are_kept_apart_from_the_last(name):
    inside, trace = vlm(name).anatomy, asked(name)
    if name not in STREAMS:
        assert trace.hidden_layers == tuple(range(inside.layers + 1))
        return
    assert trace.hidden_layers == (inside.layers,)
    with pytest.warns(UserWarning, match="several streams"):
        vlm(name).generate(photo(), QUESTION, max_new_tokens=1)
    own = plain(name, do_sample=False, output_hidden_states=True)
    streams = vlm(name).generate(photo(), QUESTION, capture=lp.Capture(layers=[0, 1]), **words_only(name))
    for column, layer in enumerate((0, 1)):
        states = torch.stack([step[layer][0, -1] for step in own.hidden_states])
        assert torch.equal(streams.hidden_states[:, column], states)
    with pytest.raises(lp.BadModel, match="different shapes"):
        vlm(name).generate(photo(), QUESTION, capture=lp.Capture(layers=[0, inside.layers]))


class OwnKernel(LlamaAttention):
    """An attention that chooses its kernel by itself, past transformers' interface."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **kwargs):
        split = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            p(hidden_states).view(split).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        weights = None
        if self.config._attn_implementation == "eager":
            out, weights = eager_attention_forward(self, query, key, value, attention_mask, self.scaling)
        else:
            key, value = (repeat_kv(x, self.num_key_value_groups) for x in (key, value))
            causal = attention_mask is None and query.shape[2] > 1
            out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, is_causal=causal)
            out = out.transpose(1, 2)
        return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


def test_attention_past_the_interface_runs_eager_with_one_notice():
    ordinary = lp.VLM(random_llava(), llava_processor())
    model = random_llava()
    for module in model.modules():
        if isinstance(module, LlamaAttention):
            module.__class__ = OwnKernel
    own = lp.VLM(model, llava_processor())
    with pytest.warns(UserWarning, match="OwnKernel does not go through.*square") as told:
        trace = own.generate(photo(), QUESTION, max_new_tokens=NEW)
    assert len(told) == 1
    plain = ordinary.generate(photo(), QUESTION, max_new_tokens=NEW)
    assert trace.generated_ids.tolist() == plain.generated_ids.tolist()
    torch.testing.assert_close(trace.attention, plain.attention, atol=1e-5, rtol=0)
    assert model.config.text_config._attn_implementation == "sdpa"


def test_an_encoder_decoder_is_refused_in_one_sentence():
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "d_kv": 8, "vocab_size": 9}
    eyes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "d_ff": 16, "d_kv": 8}
    model = Pix2StructForConditionalGeneration(Pix2StructConfig(text_config=sizes, vision_config=eyes))
    with pytest.raises(lp.BadModel, match="Pix2StructForConditionalGeneration has an encoder that reads the prompt"):
        lp.VLM(model, llava_processor())


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_families_whose_heads_differ_are_those_listed(name):
    assert (len(set(vlm(name).anatomy.head_counts.values())) > 1) == (name in HEADS_DIFFER)


def test_the_families_whose_heads_differ_are_in_the_zoo():
    assert set(HEADS_DIFFER) <= zoo.WRITTEN


@families("lens")
def test_the_last_layer_of_a_lens_is_what_the_model_says(name):
    """Whatever a family does behind its last block; and the layer before it can be read as well."""
    given, trace = vlm(name), asked(name)
    last = lp.lens(given, trace, layers=-1, at=lp.PREDICTING, top=3, words=[trace.spellings.text(40)])
    logprobs = torch.log_softmax(trace.logits.double(), -1)
    best = logprobs.topk(3)
    torch.testing.assert_close(last.probability[0], best.values.exp().float(), atol=0, rtol=1e-5)
    torch.testing.assert_close(logprobs.gather(1, last.ids[0]), best.values, atol=1e-6, rtol=1e-5)
    entropy = torch.special.entr(logprobs.exp()).sum(-1).float()
    torch.testing.assert_close(last.entropy[0], entropy, atol=1e-6, rtol=1e-5)
    before = lp.lens(given, trace, layers=-2, at=lp.LAST)
    assert torch.isfinite(before.entropy).all() and before.probability.sum() > 0
