"""A model is the one that was trained, by the logits of a row kept beside it; what is not is told before it answers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import llava_probe as lp
from llava_probe.inside.weights import weights_digest
from llava_probe.loading import pretrained
from llava_probe.loading.adapters import put_on
from llava_probe.loading.check_row import CHECK_ROW, verify_row, write_check_row
from llava_probe.loading.last_logits import last_logits
from llava_probe.whole_file import checksum
from tests.loading.adapted import PROJECTOR, configured, lora, rewritten, row, trained


@pytest.fixture(scope="module")
def inputs():
    return row()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, inputs):
    """An adapter with its row."""
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    model = trained(lora(modules_to_save=[PROJECTOR]))
    model.peft_config["default"].base_model_name_or_path = "tiny"
    model.save_pretrained(folder)
    write_check_row(model, inputs, folder)
    return folder


@pytest.fixture(scope="module")
def loaded(saved):
    """The model that it is of, for tests that only look."""
    return put_on(lp.load().model, str(saved), {})


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "adapter")


def refusal(folder, **how) -> str:
    with pytest.raises(lp.BadModel) as told:
        lp.load(adapter=folder, **how)
    return str(told.value)


def changed(folder, change, **told):
    """The row's file after ``change`` of its tensors, its checksum right."""
    path = folder / CHECK_ROW
    with safe_open(path, "pt") as held:
        metadata = held.metadata()
    tensors = load_file(path)
    change(tensors)
    metadata["row"] = json.dumps({**json.loads(metadata["row"]), **told})
    save_file(tensors, path, {**metadata, "digest": checksum(metadata["row"], tensors)})
    return folder


def test_a_row_holds_the_last_logits_of_both(saved, inputs):
    held = load_file(saved / CHECK_ROW)
    plain = lp.load().model(**inputs).logits[0, -4:]
    torch.testing.assert_close(held["logits.base"], plain.detach())
    other = put_on(lp.load().model, str(saved), {})(**inputs).logits[0, -4:]
    torch.testing.assert_close(held["logits.tuned"], other.detach())
    assert {name.removeprefix("inputs.") for name in held} == {*inputs, "logits.base", "logits.tuned"}
    with safe_open(saved / CHECK_ROW, "pt") as file:
        told = json.loads(file.metadata()["row"])
    assert told["dtype"] == "float32" and told["torch"] == torch.__version__ and told["model"] == "tiny"


def test_an_adapter_loads_by_either_name_where_its_row_holds(saved, inputs):
    expected = load_file(saved / CHECK_ROW)["logits.tuned"]
    for vlm in (lp.load(saved), lp.load("tiny", adapter=saved)):
        assert torch.equal(last_logits(vlm.model, inputs), expected)
        assert not any(parameter.requires_grad for parameter in vlm.model.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_row_holds_in_another_dtype(saved, dtype):
    lp.load(adapter=saved, dtype=dtype)


def test_writing_and_verifying_leave_the_model_as_it_was(saved, inputs, tmp_path):
    model = trained()
    model.train()
    model.base_model.model.lm_head.eval()
    before = weights_digest(model, anew=True), [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    write_check_row(model, {**inputs, "labels": inputs["input_ids"]}, tmp_path)
    verify_row(model, tmp_path)
    assert before == (weights_digest(model, anew=True), [module.training for module in model.modules()])
    assert wanted == [parameter.requires_grad for parameter in model.parameters()]


def test_padding_is_not_looked_at(loaded, inputs):
    padded = {
        **inputs,
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 3)),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 3)),
    }
    torch.testing.assert_close(last_logits(loaded, padded), last_logits(loaded, inputs))


def test_words_that_a_model_rules_out_hide_no_change(inputs):
    model = trained()
    plain = last_logits(model, inputs)
    model.base_model.model.lm_head.register_forward_hook(
        lambda _module, _args, scores: scores.index_fill(-1, torch.tensor([3]), torch.finfo(scores.dtype).min)
    )
    assert torch.equal(last_logits(model, inputs), plain.index_fill(-1, torch.tensor([3]), 0))


def test_inputs_that_are_no_tensors_survive(inputs, tmp_path, monkeypatch):
    model = trained()
    seen = []
    forward = type(model.base_model.model).forward

    def noting(self, *args, tiles=None, **kwargs):
        seen.append(tiles)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.base_model.model), "forward", noting)
    write_check_row(model, {**inputs, "tiles": [[2, 3], [1, 1]]}, tmp_path)
    seen.clear()
    verify_row(model, tmp_path)
    assert seen == [[[2, 3], [1, 1]]] * 2
    with pytest.raises(lp.BadInput, match=r"tensors and plain data; among \['tiles'\] is something else"):
        write_check_row(model, {**inputs, "tiles": {3}}, tmp_path)


# --- what is told when writing ---


def test_a_training_that_changed_nothing_is_told(inputs, tmp_path):
    with pytest.raises(lp.BadModel, match="training changed nothing"):
        write_check_row(trained(size=0.0), inputs, tmp_path)
    model = trained()
    with torch.no_grad():
        model.base_model.model.lm_head.weight[0] = float("nan")
    with pytest.raises(lp.BadModel, match="training diverged"):
        write_check_row(model, inputs, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_will_not_run_so_again_is_refused(inputs, tmp_path):
    with pytest.raises(lp.BadInput, match="has no adapter to switch off; give base="):
        write_check_row(lp.load().model, inputs, tmp_path)
    model = trained()
    model.merge_adapter()
    with pytest.raises(lp.BadInput, match="the adapter is merged into the weights"):
        write_check_row(model, inputs, tmp_path)
    model.unmerge_adapter()
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    with pytest.raises(lp.BadInput, match=r"stands in place of the model's forward pass .*keep_fp32_wrapper=False"):
        write_check_row(model, inputs, tmp_path)


# --- what is told when loading ---


def test_an_adapter_that_does_nothing_is_told(copied):
    """Every tensor binds, and the scaling makes nothing of it."""
    for path in copied.glob("adapter_*"):
        path.unlink()
    trained().save_pretrained(copied)
    told = refusal(configured(copied, lora_alpha=0))
    assert told.startswith(f"{copied} was not loaded as it was trained: on its check row the logits are those without")
    assert told.endswith(f"to load it all the same, remove {copied / CHECK_ROW}")


def test_other_values_are_told(copied):
    rewritten(copied, lambda held: [held[name].mul_(1.5) for name in held if "lora_B" in name])
    assert "its weights, or those of" in (told := refusal(copied)) and "where torch.float32 beside float32" in told


def test_other_weights_beneath_are_told(copied, tmp_path):
    model = lp.load().model
    with torch.no_grad():
        model.model.language_model.layers[2].mlp.down_proj.weight.mul_(1.1)
    model.save_pretrained(tmp_path / "other")
    lp.load().processor.save_pretrained(tmp_path / "other")
    with pytest.raises(lp.BadModel, match=f"off by .* it was trained on tiny, and this is {tmp_path / 'other'}"):
        lp.load(tmp_path / "other", adapter=copied)


def test_a_change_the_other_way_is_told_where_16_bits_would_hide_it(inputs, tmp_path):
    model = trained(size=0.01)
    model.save_pretrained(tmp_path)
    write_check_row(model, inputs, tmp_path)
    lp.load(adapter=tmp_path, dtype="bfloat16")
    changed(tmp_path, lambda held: held.update({"logits.tuned": 2 * held["logits.base"] - held["logits.tuned"]}))
    assert "the logits are not changed as training changed them" in refusal(tmp_path, dtype="bfloat16")
    assert "off by" in refusal(tmp_path)


def test_a_row_of_other_logits_is_told(copied):
    changed(copied, lambda held: held["logits.tuned"].add_(torch.randn(held["logits.tuned"].shape)))
    assert "off by" in refusal(copied)
    changed(copied, lambda held: held.update({name: held[name][:, :9].clone() for name in held if "logits" in name}))
    assert "its check row has 4 x 9 logits, this model 4 x " in refusal(copied)


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "a flipped bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x7f"),
    "empty": lambda path: path.write_bytes(b""),
    "another kind": lambda path: save_file({"a": torch.ones(2)}, path),
    "a broken link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "no inputs": lambda path: changed(path.parent, lambda held: held.pop("inputs.input_ids")),
    "no logits": lambda path: changed(path.parent, lambda held: held.pop("logits.base")),
    "two rows": lambda path: changed(
        path.parent, lambda held: held.update({"inputs.input_ids": held["inputs.input_ids"].repeat(2, 1)})
    ),
    "no numbers": lambda path: changed(path.parent, lambda held: held["logits.base"].fill_(float("inf"))),
    "a dtype of its own": lambda path: changed(path.parent, lambda held: None, dtype="float33"),
    "ids beyond all": lambda path: changed(path.parent, lambda held: held["inputs.input_ids"].fill_(10**9)),
    "pixels of another shape": lambda path: changed(
        path.parent, lambda held: held.update({"inputs.pixel_values": held["inputs.pixel_values"][:, :2].clone()})
    ),
    "other data": lambda path: changed(path.parent, lambda held: None, inputs={"input_ids": [3]}, colour=1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_is_told(damage, loaded, saved, tmp_path):
    shutil.copy(saved / CHECK_ROW, tmp_path)
    DAMAGE[damage](tmp_path / CHECK_ROW)
    with pytest.raises(
        lp.BadModel, match=rf"{tmp_path} was not loaded .*; to load it all the same, remove {tmp_path}/"
    ):
        verify_row(loaded, tmp_path)


def test_a_file_too_large_for_a_row_is_not_read(loaded, saved, monkeypatch):
    monkeypatch.setattr("llava_probe.loading.check_row._LARGEST", 1000)
    with pytest.raises(lp.BadModel, match="a check row has at most 1,000"):
        verify_row(loaded, saved)


def test_an_adapter_of_the_hub_is_held_to_its_row_too(copied, monkeypatch):
    monkeypatch.setattr(pretrained, "hf_hub_download", lambda name, file, **how: str(copied / file))
    assert pretrained._folder_of("somebody/adapter", {"cache_dir": "x", "dtype": "float32"}) == copied

    def missing(*_args, **_how):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(pretrained, "hf_hub_download", missing)
    assert pretrained._folder_of("somebody/adapter", {}) is None and pretrained._folder_of(str(copied), {}) == copied


# --- a model that was trained as a whole ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory, inputs):
    folder = tmp_path_factory.mktemp("whole") / "model"
    vlm = lp.load()
    base = last_logits(vlm.model, inputs)
    with torch.no_grad():
        vlm.model.model.language_model.layers[1].mlp.up_proj.weight.mul_(1.05)
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    write_check_row(vlm.model, inputs, folder, base=base)
    return folder


def test_a_whole_model_is_held_to_its_row(whole, saved, tmp_path):
    lp.load(whole, dtype="float32")
    lp.load(whole, dtype="bfloat16")
    lp.load(whole, random_weights=0)
    shutil.copy(whole / CHECK_ROW, tmp_path)
    lp.load().model.save_pretrained(tmp_path)
    lp.load().processor.save_pretrained(tmp_path)
    for dtype, words in (("float32", "off by"), ("bfloat16", "not changed as training changed them")):
        with pytest.raises(lp.BadModel, match=words):
            lp.load(tmp_path, dtype=dtype)


def test_quantised_weights_need_not_give_the_same(saved, monkeypatch):
    model = put_on(lp.load().model, str(saved), {})
    with torch.no_grad():
        model.base_model.model.lm_head.weight.mul_(1.2)
    with pytest.raises(lp.BadModel, match="off by"):
        verify_row(model, saved)
    monkeypatch.setattr(model.base_model.model.config, "quantization_config", {"quant_method": "some"}, raising=False)
    verify_row(model, saved)
    model.base_model.disable_adapter_layers()
    with pytest.raises(lp.BadModel, match="the logits are those without the adapter"):
        verify_row(model, saved)
