"""The length of a difference is that of the dense matrices, with adapters, without, and on both sides."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import llava_probe as lp
from llava_probe.compare.weights import moved_weights, product_norm
from tests.models import llava_processor, random_llava

TARGETS = r".*language_model.*\.(q_proj|down_proj)"


def vlm_of(model):
    return lp.VLM(model.eval(), llava_processor())


def adapted(seed, **config):
    torch.manual_seed(seed)
    model = get_peft_model(random_llava(), LoraConfig(r=3, lora_alpha=12, target_modules=TARGETS, **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or (parameter.requires_grad and "lora_" not in name):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return vlm_of(model)


def moved_beneath(step):
    tuned = adapted(1)
    with torch.no_grad():
        tuned.model.base_model.model.model.language_model.layers[2].mlp.down_proj.base_layer.weight.add_(step)
    return tuned


@pytest.fixture(scope="module")
def plain():
    return vlm_of(random_llava())


def by_name(a, b):
    return {f"{each.module}.{each.weight}": each for each in moved_weights(a, b)}


def merged(vlm):
    """Every weight as a model without adapters would hold it: PEFT's own merge."""
    return dict(vlm.model.merge_and_unload().named_parameters())


def dense(one, other):
    return {name: float((other[name].detach().double() - one[name].detach().double()).norm()) for name in one}


def test_a_product_is_as_long_as_the_dense_one():
    torch.manual_seed(0)
    pairs = [(torch.randn(40, rank), torch.randn(rank, 30), scale) for rank, scale in ((2, 1.5), (5, -0.3))]
    whole = sum(scale * (b.double() @ a.double()) for b, a, scale in pairs)
    assert product_norm(pairs) == pytest.approx(float(whole.norm()), rel=1e-10)
    assert product_norm([]) == 0


def test_a_model_and_itself_differ_nowhere(plain):
    assert all(each.difference == 0 and each.ratio == 0 for each in moved_weights(plain, plain))


def test_adapters_are_what_they_merge_to(plain):
    own = dict(plain.model.named_parameters())
    found, other = by_name(plain, tuned := adapted(1, modules_to_save=["multi_modal_projector"])), merged(tuned)
    assert found.keys() == own.keys()
    for name, expected in dense(own, other).items():
        assert found[name].difference == pytest.approx(expected, rel=1e-5, abs=1e-7), name
        assert found[name].length == pytest.approx(float(own[name].detach().norm()), rel=1e-6)
    moved = [each for each in moved_weights(plain, adapted(1)) if each.difference]
    assert moved and all(each.module.endswith(("q_proj", "down_proj")) for each in moved)


def test_two_adapters_are_compared_with_each_other():
    found = by_name(adapted(1), adapted(2))
    for name, expected in dense(merged(adapted(1)), merged(adapted(2))).items():
        assert found[name].difference == pytest.approx(expected, rel=1e-4, abs=1e-6), name
    assert not any(each.difference for each in moved_weights(adapted(1), adapted(1)))


def test_an_adapter_that_is_off_adds_nothing(plain):
    tuned = adapted(1)
    with tuned.model.disable_adapter():
        assert not any(each.difference for each in moved_weights(plain, tuned))


def test_a_weight_beneath_an_adapter_counts_too(plain):
    name = "model.language_model.layers.2.mlp.down_proj.weight"
    expected = dense(dict(plain.model.named_parameters()), merged(moved_beneath(0.01)))[name]
    assert by_name(plain, moved_beneath(0.01))[name].difference == pytest.approx(expected, rel=1e-5)


def test_codes_of_a_quantised_weight_are_not_taken_for_its_values(plain):
    quantised = vlm_of(random_llava())
    module = quantised.anatomy.model.model.language_model.layers[2].mlp.down_proj
    codes = (module.weight.detach() * 100).to(torch.int8)
    module.weight = torch.nn.Parameter(codes, requires_grad=False)
    for pair in ((plain, quantised), (quantised, plain)):
        (unread,) = [each for each in moved_weights(*pair) if each.difference != 0]
        assert unread.module.endswith("layers.2.mlp.down_proj") and unread.difference != unread.difference


def test_models_of_other_weights_are_refused(plain, tiny_vlm):
    with pytest.raises(lp.BadInput, match=r"in one of them only|in one model and"):
        moved_weights(plain, tiny_vlm)
