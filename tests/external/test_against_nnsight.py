"""nnsight reads the same states and attention out of the same model."""

import copy

import pytest
import torch

import llava_probe as lp
from tests.models import llava_processor, photo, random_llava

nnsight = pytest.importorskip("nnsight")

PROMPT = "USER: <image>\nwhat is the text on the stop sign\nASSISTANT:"


def test_states_and_rows_equal_nnsights():
    model, processor = random_llava(), llava_processor()
    everything = lp.Capture(positions="all", attention_positions="all")
    trace = lp.VLM(model, processor).generate(photo(), prompt=PROMPT, max_new_tokens=1, capture=everything)
    inputs = dict(processor(text=PROMPT, images=photo(), return_tensors="pt"))
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    seen = nnsight.NNsight(eager)
    with torch.no_grad(), seen.trace(**inputs):
        attention = seen.model.language_model.layers[2].self_attn.output.save()
        state = seen.model.language_model.layers[2].output.save()
    state = state[0] if isinstance(state, tuple) else state
    torch.testing.assert_close(trace.hidden(layer=3, at="all"), state[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(trace.rows(at="all", layer=2), attention[1][0].transpose(0, 1), atol=1e-5, rtol=0)


def test_states_of_each_generated_token_equal_nnsights():
    model, processor = random_llava(), llava_processor()
    trace = lp.VLM(model, processor).generate(photo(), prompt=PROMPT, max_new_tokens=4)
    inputs = dict(processor(text=PROMPT, images=photo(), return_tensors="pt"))
    seen = nnsight.TransformersModel(copy.deepcopy(model), tokenizer=processor.tokenizer, task="text-generation")
    states = []
    with seen.generate(inputs, max_new_tokens=4, do_sample=False) as tracer:
        for _ in tracer.iter[0:4]:
            states.append(seen.model.language_model.layers[2].output)
        ids = tracer.result.save()
    last = torch.stack([(state[0] if isinstance(state, tuple) else state)[0, -1] for state in states])
    assert ids[0, trace.prompt_length :].tolist() == trace.generated_ids.tolist()
    torch.testing.assert_close(trace.hidden(layer=3), last, atol=1e-5, rtol=1e-5)


def test_what_each_layer_would_say_equals_nnsights():
    """Each layer's output through the model's own norm and head, inside nnsight's trace."""
    model, processor = random_llava(), llava_processor()
    vlm = lp.VLM(model, processor)
    trace = vlm.generate(photo(), prompt=PROMPT, max_new_tokens=1)
    found = lp.lens(vlm, trace, layers=[0, 1, 2, 3], at=lp.ALL, top=5)
    inputs = dict(processor(text=PROMPT, images=photo(), return_tensors="pt"))
    seen = nnsight.NNsight(copy.deepcopy(model))
    said = []
    with torch.no_grad(), seen.trace(**inputs):
        inside = seen.model.language_model
        for layer in range(4):
            said.append(seen.lm_head(inside.norm(inside.layers[layer].input))[0].softmax(-1).save())
    for row, theirs in enumerate(said):
        best = theirs.topk(5)
        torch.testing.assert_close(found.probability[row], best.values, atol=1e-6, rtol=1e-4)
        assert torch.equal(found.ids[row, :, 0], best.indices[:, 0])
