"""Another model is never taken for the same one, and the same is never taken for another."""

from __future__ import annotations

import functools

import peft
import pytest
import torch
from torch import nn

import llava_probe as lp
from llava_probe.asking.identity import differences, in_brief, model_of, other_model
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is it"


def told(vlm: lp.VLM, **how) -> dict:
    return model_of(vlm.anatomy, vlm.model, **how)


def apart(one: dict, other: dict) -> str:
    return "; ".join(differences(one, other))


def lora(**settings) -> peft.LoraConfig:
    return peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **settings
    )


@pytest.fixture
def adapted() -> lp.VLM:
    """A model with two adapters, the first active."""
    torch.manual_seed(0)
    model = peft.get_peft_model(random_llava(), lora()).eval()
    model.add_adapter("b", lora())
    return lp.VLM(model, llava_processor())


def scaled(module: nn.Module) -> None:
    module.scaling *= 2


def weighed(module: nn.Module) -> None:
    with torch.no_grad():
        module.k_proj.weight[3, 5] += 1e-3


def replaced(module: nn.Module) -> None:
    module.forward = functools.partial(lambda own, *args, **kwargs: own(*args, **kwargs), module.forward)


def steered(module: nn.Module, by: float = 1.0) -> None:
    module.register_forward_hook(lambda _module, _args, output: (output[0] * by, *output[1:]))


CHANGES = {
    "a config's entry": (
        lambda m: setattr(m.config, "vision_feature_layer", -1),
        "config.vision_feature_layer: -2 | -1",
    ),
    "a nested entry": (
        lambda m: setattr(m.config.text_config, "rms_norm_eps", 1e-3),
        "config.text_config.rms_norm_eps",
    ),
    "a weight": (lambda m: weighed(m.model.language_model.layers[2].self_attn), "weights"),
    "a module's number": (lambda m: scaled(m.model.language_model.layers[2].self_attn), "modules"),
    "a hook": (lambda m: steered(m.model.language_model.layers[2]), "hook on model.language_model.layers.2"),
    "a forward": (lambda m: replaced(m.model.language_model.layers[2]), "forward of model.language_model.layers.2"),
    "a frequency": (lambda m: m.model.language_model.rotary_emb.inv_freq.mul_(2), "weights"),
    "a dtype": (lambda m: m.bfloat16(), 'dtype: "float32" | "bfloat16"'),
    "a mode": (lambda m: m.train(), "in training mode"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_model_is_another(random_vlm, what):
    change, word = CHANGES[what]
    before, in_full = told(random_vlm), told(random_vlm, in_full=True)
    change(random_vlm.model)
    assert told(random_vlm) != before
    assert word in apart(in_full, told(random_vlm, in_full=True))


def test_the_same_model_is_the_same(random_vlm):
    """Also after it answered, and when another process would have loaded it."""
    before = told(random_vlm, in_full=True)
    random_vlm.generate(photo(), QUESTION, max_new_tokens=2)
    other = lp.VLM(random_llava(), llava_processor())
    assert before == told(random_vlm, in_full=True) == told(other, in_full=True)
    random_vlm.model.generation_config.temperature = 0.3
    assert before == told(random_vlm, in_full=True)


def test_a_full_record_is_told_in_brief(random_vlm):
    full, brief = (model_of(random_vlm.anatomy, random_vlm.model, in_full=whole) for whole in (True, False))
    assert full != brief and in_brief(full) == brief == in_brief(brief)


def test_a_hook_is_known_by_the_numbers_that_it_holds():
    seen = []
    for by in (1.0, 2.0, 1.0, torch.ones(3), torch.zeros(3)):
        vlm = lp.VLM(random_llava(), llava_processor())
        steered(vlm.model.model.language_model.layers[1], by)
        seen.append(told(vlm)["changed"])
    assert seen[0] == seen[2] and len({str(one) for one in seen}) == 4


def test_our_own_interventions_are_told_elsewhere(random_vlm):
    with lp.knock_out(random_vlm, keys=lp.IMAGE):
        assert "changed" not in random_vlm.generate(photo(), QUESTION, max_new_tokens=1).provenance


STATES = {
    "another": (lambda m: m.set_adapter("b"), 'adapter.active: "default" | "b"'),
    "off": (lambda m: m.base_model.disable_adapter_layers(), 'adapter.active: "default" | "none"'),
    "merged": (lambda m: m.merge_adapter(), 'adapter.merged: nothing | "default"'),
    "both": (lambda m: m.base_model.set_adapter(["default", "b"]), 'adapter.active: "default" | "default, b"'),
    "scaled": (
        lambda m: [layer.set_scale("default", 3) for layer in m.modules() if hasattr(layer, "set_scale")],
        'scaling 2" | "scaling 6',
    ),
    "one layer scaled": (
        lambda m: m.base_model.model.model.language_model.layers[0].self_attn.q_proj.scale_layer(2),
        'scaling 2" | "scaling 2 to 4',
    ),
    "gone": (lambda m: m.delete_adapter("b"), "adapter.b: LORA, rank 4"),
}


@pytest.mark.parametrize("state", STATES)
def test_an_adapter_and_its_state_are_known(adapted, state):
    change, words = STATES[state]
    before = told(adapted)
    change(adapted.model)
    assert words in apart(before, told(adapted))


def test_an_adapter_that_is_on_again_is_the_same(adapted):
    before = told(adapted)
    with adapted.model.disable_adapter():
        assert told(adapted) != before
    assert told(adapted) == before


def test_adapters_of_transformers_own_are_known(random_vlm):
    bare = told(random_vlm)
    random_vlm.model.add_adapter(lora(), "a")
    random_vlm.model.add_adapter(lora(), "b")
    assert bare["adapter"] is None and told(random_vlm)["adapter"]["active"] == "b"
    random_vlm.model.set_adapter("a")
    on = told(random_vlm)
    random_vlm.model.disable_adapters()
    assert 'adapter.active: "a" | "none"' in apart(on, told(random_vlm))


def test_virtual_tokens_are_an_adapter():
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    prefixed = peft.get_peft_model(random_llava(), config).eval()
    anatomy = lp.VLM(random_llava(), llava_processor()).anatomy
    on = model_of(anatomy, prefixed)
    assert on["adapter"]["active"] == "default"
    with prefixed.disable_adapter():
        assert 'adapter.active: "default" | "none"' in apart(on, model_of(anatomy, prefixed))
    with torch.no_grad():
        next(p for n, p in prefixed.named_parameters() if "prompt_encoder" in n).view(-1)[7] += 1
    assert other_model(on, model_of(anatomy, prefixed))[0].startswith("weights")


def test_a_trace_and_a_store_know_the_adapter(adapted, tmp_path):
    rows = [{"image": photo(), "question": QUESTION}]
    on = adapted.generate(photo(), QUESTION, max_new_tokens=1).provenance
    lp.extract(adapted, rows, tmp_path / "s", layers=[2])
    with adapted.model.disable_adapter():
        assert adapted.generate(photo(), QUESTION, max_new_tokens=1).provenance != on
        with pytest.raises(lp.BadInput, match=r'model.adapter.active: "default" there, "none" asked'):
            lp.extract(adapted, rows, tmp_path / "s", layers=[2])
    assert len(lp.extract(adapted, rows, tmp_path / "s", layers=[2])) == 1


def test_an_attribution_of_another_models_trace_says_so(adapted):
    trace = adapted.generate(photo(), QUESTION, max_new_tokens=2)
    adapted.model.set_adapter("b")
    with pytest.warns(UserWarning, match=r'another model made this trace \(adapter.active: "default" \| "b"'):
        lp.attribute(adapted, trace, "attention", tokens=lp.ANSWER)
    own = adapted.rerun(trace, answer=trace.generated_ids)
    lp.attribute(adapted, own, "attention", tokens=lp.ANSWER)


def test_many_differences_are_counted():
    one, other = ({str(number): number + more for number in range(9)} for more in (0, 1))
    assert differences(one, other)[-2:] == ["5: 5 | 6", "3 more"]


@pytest.mark.parametrize(
    "change",
    [
        lambda vlm: setattr(vlm.processor.image_processor, "image_mean", [0.1, 0.1, 0.1]),
        lambda vlm: setattr(vlm.processor, "chat_template", vlm.processor.chat_template + " "),
        lambda vlm: setattr(vlm.model.generation_config, "suppress_tokens", [5]),
    ],
    ids=["pixels", "template", "decoding"],
)
def test_another_processor_or_way_of_decoding_is_told(change):
    vlm = lp.load()
    before = vlm.generate(photo(), QUESTION, max_new_tokens=1).provenance
    assert vlm.generate(photo(), QUESTION, max_new_tokens=1).provenance == before
    change(vlm)
    assert vlm.generate(photo(), QUESTION, max_new_tokens=1).provenance != before


def test_a_rerun_under_another_generation_config_says_so():
    vlm = lp.load()
    trace = vlm.generate(photo(), QUESTION, max_new_tokens=2)
    assert vlm.rerun(trace) == trace
    said = int(trace.generated_ids[0])
    vlm.model.generation_config.suppress_tokens = [said]
    with pytest.warns(UserWarning, match=rf"suppress_tokens: nothing \| \[{said}\]"):
        assert int(vlm.rerun(trace).generated_ids[0]) != said


def test_a_model_that_holds_adapters_in_transformers_own_way_is_taken():
    model = random_llava()
    model.add_adapter(lora(), "a")
    vlm = lp.VLM(model, llava_processor())
    assert vlm.generate(photo(), "where", max_new_tokens=2).generated
