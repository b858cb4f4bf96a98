"""Attention maps against transformers' eager attention and against traces whose attention was written by hand."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

import llava_probe as lp
from tests.models import llava_processor, photo, random_llava
from tests.synthetic import IMAGE_AT, K, P, T, causal, layout, photograph, synthetic_trace

PROMPT = "USER: <image>\nwhat is the text on the stop sign\nASSISTANT:"


@pytest.fixture(scope="module")
def vlm():
    return lp.VLM(random_llava(), llava_processor())


@pytest.fixture(scope="module")
def trace(vlm):
    return vlm.generate(photo(), prompt=PROMPT, max_new_tokens=4)


@pytest.fixture(scope="module")
def eager(vlm, trace):
    """[T, L, H, N] of the same tokens, from transformers' eager attention over the whole sequence."""
    model = copy.deepcopy(vlm.model)
    model.set_attn_implementation("eager")
    inputs = dict(vlm.processor(text=PROMPT, images=photo(), return_tensors="pt"))
    inputs["input_ids"] = torch.tensor([[token.id for token in trace.tokens[:-1]]])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True, use_cache=False).attentions
    rows = torch.stack([layer[0] for layer in attentions])[:, :, list(trace.predicting)]  # [L, H, T, K]
    return rows.permute(2, 0, 1, 3)[..., torch.from_numpy(trace.layouts[0].positions)]


def test_a_map_is_the_mean_of_eager_attention(trace, eager):
    m = lp.attention_map(trace, tokens=lp.GENERATED)
    torch.testing.assert_close(m.values, eager.mean((1, 2)), atol=1e-6, rtol=1e-4)
    assert m.tokens == trace.generated
    assert m.about["image_share"] == pytest.approx(eager.mean((1, 2)).sum(1).tolist(), abs=1e-5)


def test_layers_and_heads_are_chosen_by_the_models_numbers(trace, eager):
    every = {"tokens": lp.GENERATED}
    few = lp.attention_map(trace, layers=2, heads=[1, 3], **every)
    torch.testing.assert_close(few.values, eager[:, 2, [1, 3]].mean(1))
    torch.testing.assert_close(lp.attention_map(trace, layers=range(1, 3), **every).values, eager[:, 1:3].mean((1, 2)))
    torch.testing.assert_close(lp.attention_map(trace, layers=-1, heads=0, **every).values, eager[:, 3, 0])
    torch.testing.assert_close(lp.attention_map(trace, reduce="max", **every).values, eager.amax((1, 2)))


def test_numbers_of_numpy_and_torch_are_numbers(trace):
    for layers in (np.int64(2), np.array(2), torch.tensor(2), [np.int32(2)], np.array([2]), iter([2])):
        m = lp.attention_map(trace, layers=layers)
        torch.testing.assert_close(m.values, lp.attention_map(trace, layers=2).values)
        assert m.about["layers"] == [2]
        json.dumps(m.about)
    pair = lp.attention_map(trace, layers=[0, 1], heads=[1, 3]).values
    torch.testing.assert_close(lp.attention_map(trace, layers=np.arange(2), heads=torch.tensor([1, 3])).values, pair)
    for wrong in (True, [True], 2.0, np.float64(2), np.arange(2.0), "2", [[1]], np.ones(3, dtype=bool)):
        with pytest.raises(lp.BadInput, match="whole number"):
            lp.attention_map(trace, layers=wrong)


def test_shares_are_told_of_means_only(trace):
    """Each visual token's largest value may come from another head: together they are no share of anything."""
    assert "image_share" not in lp.attention_map(trace, reduce="max").about
    hidden = torch.ones(K, 4, 64)
    most = lp.attention_map(synthetic_trace(attention=causal(), hidden=hidden), sinks="drop", reduce="max")
    assert not [name for name in most.about if name.endswith("_share")]


def test_numbers_are_the_models_also_where_few_were_kept(vlm, eager):
    few = vlm.generate(photo(), prompt=PROMPT, max_new_tokens=4, capture=lp.Capture(attention_layers=[1, 3], heads=[2]))
    torch.testing.assert_close(lp.attention_map(few, 0, lp.GENERATED, layers=3).values, eager[:, 3, 2])
    torch.testing.assert_close(lp.attention_map(few, 0, lp.GENERATED).values, eager[:, [1, 3], 2].mean(1))
    assert lp.attention_map(few).about["layers"] == [1, 3]
    with pytest.raises(lp.NotCaptured, match="attention_layers"):
        lp.attention_map(few, layers=2)
    with pytest.raises(lp.NotCaptured, match="heads"):
        lp.attention_map(few, heads=0)


def test_a_generated_token_is_explained_by_the_row_that_predicted_it():
    attention = causal()
    trace = synthetic_trace(attention=attention)
    rows = attention.mean((1, 2))[:, list(IMAGE_AT)]
    torch.testing.assert_close(lp.attention_map(trace, tokens="STOP").values, rows[[P - 1, P]].mean(0, keepdim=True))
    torch.testing.assert_close(lp.attention_map(trace, tokens=[P + 2, P]).values, rows[[P + 1, P - 1]])
    torch.testing.assert_close(lp.attention_map(trace, tokens=-1).values, rows[[K - 1]])


def test_a_prompt_token_is_explained_by_its_own_row():
    attention = causal()
    trace = synthetic_trace(attention=attention)
    rows = attention.mean((1, 2))[:, list(IMAGE_AT)]
    torch.testing.assert_close(lp.attention_map(trace, tokens="what").values, rows[[P - 2]])
    assert [token.text for token in lp.attention_map(trace, tokens="prompt").tokens] == ["USER:", " what", "?"]
    with pytest.raises(lp.NotCaptured, match="attention_positions"):
        lp.attention_map(synthetic_trace(attention=attention[-T:]), tokens="what")


def test_relative_attention_divides_by_the_neutral_question():
    asked, neutral = synthetic_trace(attention=causal(seed=1)), synthetic_trace(attention=causal(seed=2))
    m = lp.attention_map(asked, relative_to=neutral)
    above = lp.attention_map(asked).values
    below = lp.attention_map(neutral, tokens=[P]).values[0]
    torch.testing.assert_close(m.values, above / (below + 0.01 * below.mean()))
    assert m.about["neutral"] == pytest.approx(below.tolist())
    assert m.about["unit"] != lp.attention_map(asked).about["unit"]


def test_the_neutral_question_must_be_of_the_same_picture():
    asked = synthetic_trace(attention=causal())
    with pytest.raises(lp.BadInput, match="same picture"):
        lp.attention_map(asked, relative_to=synthetic_trace(attention=causal(), image=photograph(seed=1)))


def test_the_neutral_map_is_an_average_over_the_same():
    asked = synthetic_trace(attention=causal(), image=photograph())
    fewer = {"attention": causal()[:, 1:2, :1], "attention_layers": (1,), "attention_heads": (0,)}
    neutral = synthetic_trace(**fewer, provenance=asked.provenance)
    with pytest.raises(lp.BadInput, match=r"same layers: it kept \[1\], this one \[0, 1, 2\]"):
        lp.attention_map(asked, relative_to=neutral)
    with pytest.raises(lp.BadInput, match=r"same heads: it kept \[0\], this one \[0, 1\]"):
        lp.attention_map(asked, relative_to=neutral, layers=1)
    assert len(lp.attention_map(asked, 0, lp.GENERATED, relative_to=neutral, layers=1, heads=[0])) == T


def test_the_neutral_trace_must_have_cut_the_picture_alike():
    coarser = layout()
    coarser = dataclasses.replace(
        coarser,
        positions=coarser.positions[:3],
        boxes=coarser.boxes[:3] * [1, 2, 1, 2],
        tiles=coarser.tiles[:3],
        grid=(1, 3),
    )
    asked, neutral = (synthetic_trace(attention=causal(), layouts=(each,)) for each in (layout(), coarser))
    with pytest.raises(lp.BadInput, match="3 visual tokens, this one's 6"):
        lp.attention_map(asked, relative_to=neutral)


def test_a_visual_token_that_nothing_neutral_looks_at_does_not_explode():
    attention = causal()
    attention[:, :, :, IMAGE_AT[0]] = 0
    asked, neutral = (synthetic_trace(attention=attention) for _ in range(2))
    m = lp.attention_map(asked, tokens=[P], relative_to=neutral)
    assert torch.isfinite(m.values).all()
    assert m.values[0].max() <= 1


def test_dropped_sinks_are_zero_marked_and_their_share_told():
    hidden = torch.randn(K, 4, 64, generator=torch.Generator().manual_seed(0))
    hidden[[0, IMAGE_AT[4]], :, 7] = 400
    trace = synthetic_trace(attention=causal(), hidden=hidden)
    kept, dropped = (lp.attention_map(trace, 0, lp.GENERATED, sinks=each) for each in ("keep", "drop"))
    assert dropped.marked.tolist() == [[False] * 4 + [True, False]] * T
    assert (dropped.values[:, 4] == 0).all()
    others = [0, 1, 2, 3, 5]
    torch.testing.assert_close(dropped.values[:, others], kept.values[:, others])
    assert dropped.about["sink_share"] == pytest.approx(kept.values[:, 4].tolist())


def test_what_cannot_be_mapped(trace):
    with pytest.raises(lp.OutOfRange, match="picture 1 is not there"):
        lp.attention_map(trace, image=1)
    with pytest.raises(lp.BadInput, match="Synthetic"):
        lp.attention_map(synthetic_trace(attention=causal(), layouts=()))
    with pytest.raises(lp.NotCaptured, match="attention=True"):
        lp.attention_map(synthetic_trace())
    with pytest.raises(lp.OutOfRange, match="layer 4"):
        lp.attention_map(trace, layers=4)
    for wrong in ({"layers": []}, {"reduce": "median"}, {"sinks": "hide"}, {"tokens": []}, {"heads": [1.5]}):
        with pytest.raises(lp.BadInput):
            lp.attention_map(trace, **wrong)
    with pytest.raises(lp.OutOfRange):
        lp.attention_map(trace, tokens="elephant")
    with pytest.raises(lp.NotCaptured, match="image"):
        lp.attention_map(trace, sinks="drop")


def test_nan_attention_is_an_error():
    attention = causal()
    attention[-1, 1, 0, IMAGE_AT[2]] = torch.nan
    with pytest.raises(lp.NotANumber):
        lp.attention_map(synthetic_trace(attention=attention), tokens=lp.GENERATED)


def test_a_neutral_trace_of_another_crop_is_refused_and_of_other_words_taken(random_vlm):
    trace = random_vlm.generate(photo(96, 48), "where", max_new_tokens=2)
    settings = {"do_center_crop": False, "size": {"height": 48, "width": 48}}
    squeezed = random_vlm.generate(photo(96, 48), "where", max_new_tokens=1, processor_kwargs=settings)
    with pytest.raises(lp.BadInput, match="same processor_kwargs"):
        lp.attention_map(trace, relative_to=squeezed, tokens=lp.GENERATED)
    longer = random_vlm.generate(photo(96, 48), prompt="a red sign, a red sign <image> what", max_new_tokens=1)
    assert longer.layouts[0].positions[0] != trace.layouts[0].positions[0]
    assert lp.attention_map(trace, relative_to=longer, tokens=lp.GENERATED).about["neutral"]
