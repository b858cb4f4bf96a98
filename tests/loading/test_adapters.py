"""An adapter is on the model, all of it, or it is refused in a sentence that says what of it is not."""

from __future__ import annotations

import copy
import re
import shutil

import peft
import pytest
import torch

import llava_probe as lp
from llava_probe.loading import adapters
from llava_probe.loading.adapters import put_on
from tests import zoo
from tests.loading.adapted import NOWHERE, PROJECTOR, configured, lora, rewritten, row, trained
from tests.models import photo, random_llava

BEFORE = "base_model.model.model."
FIRST = f"{BEFORE}language_model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def inputs():
    return row()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A LoRA of the decoder beside a whole projector."""
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    trained(lora(modules_to_save=[PROJECTOR])).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "adapter")


def refusal(folder, model=None) -> str:
    with pytest.raises(lp.BadModel) as told:
        put_on(model or lp.load().model, str(folder), {})
    return str(told.value)


KINDS = {
    "lora and projector": lora(modules_to_save=[PROJECTOR]),
    "projector alone": lora(target_modules=NOWHERE, modules_to_save=[PROJECTOR]),
    "dora": lora(use_dora=True),
    "ranks by pattern": lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 5}, use_rslora=True),
    "tokens": lora(trainable_token_indices=[5, 6]),
    "embedding": lora(target_modules=["q_proj", "embed_tokens"]),
    "biases": lora(target_modules=["q_proj"], bias="lora_only"),
    "a bias of B": lora(target_modules=["q_proj"], lora_bias=True),
    "ia3": peft.IA3Config(target_modules=["k_proj", "fc1"], feedforward_modules=["fc1"], init_ia3_weights=False),
}


@pytest.mark.filterwarnings("ignore:Model (has|with) .tie_word:UserWarning", "ignore:Careful, disabling:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_adapter_answers_as_when_it_was_saved(kind, inputs, tmp_path):
    model = trained(KINDS[kind])
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path, safe_serialization=kind != "dora")
    loaded = put_on(lp.load().model, str(tmp_path), {})
    assert torch.equal(loaded(**inputs).logits, expected)


def test_an_adapter_of_several_lies_in_a_folder_of_its_name(inputs, tmp_path):
    model = trained()
    model.add_adapter("other", lora(init_lora_weights=False))
    model.set_adapter("other")
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    assert torch.equal(put_on(lp.load().model, str(tmp_path / "other"), {})(**inputs).logits, expected)


def test_names_that_peft_itself_knows_otherwise_are_no_fault(inputs, tmp_path):
    """What was saved from the text model of another wrapper, which PEFT renames by its tables."""
    model = trained()
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    rewritten(tmp_path, lambda held: renamed(held, f"{BEFORE}language_model.", f"{BEFORE}language_model.model."))
    assert torch.equal(put_on(lp.load().model, str(tmp_path), {})(**inputs).logits, expected)


def renamed(held, before, after) -> None:
    for name in list(held):
        held[name.replace(before, after)] = held.pop(name)


BROKEN = {
    "a renamed tensor": (
        lambda held: renamed(held, FIRST, FIRST.replace("q_proj", "qq_proj")),
        f"39 of the 40 tensors of its file bind to a module of the model; there is no place for "
        f"{FIRST.replace('q_proj', 'qq_proj')}",
    ),
    "a tensor missing": (
        lambda held: held.pop(FIRST),
        f"39 of the 39 .*; {FIRST} is not in the file: it is incomplete",
    ),
    "a surplus tensor": (
        lambda held: held.update({f"{BEFORE}lm_head.lora_A.weight": torch.ones(2, 3)}),
        "40 of the 41 .*; there is no place for",
    ),
    "a shape": (
        lambda held: held.update({FIRST: held[FIRST][:2].clone()}),
        rf"39 of the 40 .*; {FIRST} is \[2, 192\] in the file and \[4, 192\] in the model: it is another model's",
    ),
    "a projector's tensor missing": (
        lambda held: held.pop(f"{BEFORE}multi_modal_projector.linear_1.bias"),
        "39 of the 39 .*linear_1.bias is not in the file",
    ),
    "another prefix": (
        lambda held: renamed(held, "language_model.layers", "layers"),
        f"4 of the 40 .*its {FIRST.replace('language_model.', '')} is {FIRST} in the model|its .*another prefix",
    ),
    "no prefix, projector": (
        lambda held: renamed(held, f"{BEFORE}multi", "base_model.model.multi"),
        "36 of the 40 .*another prefix",
    ),
    "another program's names": (
        lambda held: renamed(held, BEFORE, "lora_unet_"),
        "0 of the 40 .*(another prefix|another program)",
    ),
}


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
@pytest.mark.parametrize("how", BROKEN)
def test_a_tensor_without_its_place_is_named(how, copied):
    change, words = BROKEN[how]
    told = refusal(rewritten(copied, change))
    assert told.startswith(f"the adapter {copied} does not fit ")
    assert re.search(words, told), told


def half_loaded(monkeypatch) -> None:
    """PEFT as it is where it puts one tensor nowhere."""
    load = peft.PeftModel.from_pretrained.__func__

    def loading(cls, *args, **how):
        model = load(cls, *args, **how)
        model.get_parameter(FIRST.replace("lora_A", "lora_A.default")).data[1, 2] += 1e-3
        return model

    monkeypatch.setattr(peft.PeftModel, "from_pretrained", classmethod(loading))


def test_what_was_not_put_in_its_place_is(saved, inputs, monkeypatch):
    expected = put_on(lp.load().model, str(saved), {})(**inputs).logits
    half_loaded(monkeypatch)
    assert torch.equal(put_on(lp.load().model, str(saved), {})(**inputs).logits, expected)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_a_family_whose_new_names_peft_takes_for_old_ones_gets_them_all(tmp_path):
    vlm = zoo.vlm("deepseek_ocr2")
    shown = vlm.model_inputs(photo(), "what is it")[0]
    model = trained(lora(target_modules=r".*language_model.*\.(q_proj|v_proj)"), base=copy.deepcopy(vlm.model))
    expected = model(**shown).logits
    model.save_pretrained(tmp_path)
    assert torch.equal(put_on(copy.deepcopy(vlm.model), str(tmp_path), {})(**shown).logits, expected)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_other_values_than_the_files_are_told(copied, monkeypatch):
    """Where names on both sides are not the same, nothing says what belongs where."""
    half_loaded(monkeypatch)
    told = refusal(rewritten(copied, lambda held: held.pop(FIRST.replace("lora_A", "lora_B"))))
    assert (
        f"38 of the 39 tensors of its file bind to a module of the model; the model holds other values of {FIRST}"
        in told
    )


def test_another_models_adapter_is_told(saved, copied):
    assert (
        "0 of the 40 tensors" in (told := refusal(saved, random_llava())) and "the adapter is another model's" in told
    )
    assert "No modules were targeted" in refusal(configured(copied, target_modules=["query_key_value"]))


def test_an_adapter_in_another_dtype_is_the_same(saved):
    """What the model holds in 16 bits is the file's, rounded."""
    model = put_on(lp.load(dtype="bfloat16").model, str(saved), {})
    assert (
        model.get_submodule(f"base_model.model.{PROJECTOR}").modules_to_save.default.linear_1.weight.dtype
        == torch.bfloat16
    )


@pytest.mark.parametrize(
    "config", [lora(), lora(use_dora=True), lora(modules_to_save=[PROJECTOR])], ids=["lora", "dora", "projector"]
)
def test_an_adapter_that_was_never_trained_is_refused(config, tmp_path, inputs):
    """PEFT begins with zero: the very logits of the base."""
    model = trained(config, size=0.0)
    torch.testing.assert_close(model(**inputs).logits, lp.load().model(**inputs).logits)
    model.save_pretrained(tmp_path)
    assert f"the adapter {tmp_path} was never trained: what it adds is zero everywhere" in refusal(tmp_path)


def test_a_projector_that_was_trained_beside_an_untrained_lora_is_a_change(tmp_path):
    model = trained(lora(modules_to_save=[PROJECTOR]), size=0.0)
    with torch.no_grad():
        model.get_submodule(f"base_model.model.{PROJECTOR}").modules_to_save.default.linear_2.bias[3] += 1
    model.save_pretrained(tmp_path)
    put_on(lp.load().model, str(tmp_path), {})


def test_a_twin_has_the_same_block(saved):
    others = [FIRST, FIRST.replace("layers.0", "layers.1"), f"{BEFORE}multi_modal_projector.linear_1.weight"]
    assert adapters._twin("model.layers.1.self_attn.q_proj.lora_A.weight", others) == others[1]
    assert adapters._twin("model.layers.7.self_attn.q_proj.lora_A.weight", others) is None
    assert adapters._twin("multi_modal_projector.linear_1.weight", others) == others[2]
