"""What cannot be loaded is told in a sentence that names it, before torch is imported."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys

import peft
import pytest
import torch
import transformers
from transformers import CLIPConfig, GPT2Config, LlamaConfig, ViTConfig

import llava_probe as lp
from llava_probe import tiny
from llava_probe.loading import folder, hub, kinds, load, look
from tests.models import llava_processor, random_llava

ORIGINAL = {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": "clip"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A whole checkpoint in two shards."""
    where = tmp_path_factory.mktemp("saved") / "llava"
    random_llava().save_pretrained(where, max_shard_size="300KB")
    llava_processor().save_pretrained(where)
    return where


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "llava")


def refusal(name, **how) -> str:
    with pytest.raises(lp.BadModel) as told:
        look(name, **how)
    return str(told.value)


def of_config(tmp_path, **config) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return refusal(tmp_path)


def test_a_missing_folder_is_told_with_what_lies_beside(tmp_path):
    (tmp_path / "llava-tuned").mkdir()
    assert refusal(tmp_path / "llava-tuend") == (
        f"there is no folder {tmp_path}/llava-tuend; in {tmp_path} are llava-tuned"
    )
    assert refusal("./nowhere/at/all") == "there is no folder ./nowhere/at/all; there is no nowhere/at either"
    assert "there is no such user" in refusal("~nobody-of-this-name/model")


@pytest.mark.parametrize("name", [3, b"x", "", "  ", "a\0b", ["tiny"]])
def test_what_is_no_name_is_refused(name):
    assert "a model is given by its folder or its name on the hub" in refusal(name)
    assert "no name of a folder" in refusal("x" * 5000)


def test_a_folder_without_a_model_tells_what_it_holds(tmp_path):
    assert refusal(tmp_path).endswith("so no model is there: it is empty")
    (tmp_path / "notes.txt").touch()
    assert refusal(tmp_path).endswith("it holds notes.txt")
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "config.json").write_text("{}")
    assert "its folders checkpoint-500 do; give one of them" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name, words", [("a.gguf", "llama.cpp"), ("a.safetensors", "weights alone"), ("a.txt", "a file")]
)
def test_a_file_is_no_model(tmp_path, name, words):
    (tmp_path / name).touch()
    assert words in refusal(tmp_path / name)


KINDS = {
    "text-only: LlamaForCausalLM": LlamaConfig(architectures=["LlamaForCausalLM"]),
    "text-only: GPT2LMHeadModel": GPT2Config(architectures=["GPT2LMHeadModel"]),
    "an image classifier, which has no language model: ViTForImageClassification": ViTConfig(
        architectures=["ViTForImageClassification"]
    ),
    "an encoder of pictures and words that answers nothing: CLIPModel": CLIPConfig(architectures=["CLIPModel"]),
}


@pytest.mark.parametrize("words", KINDS)
def test_another_kind_of_model_is_named(tmp_path, words):
    KINDS[words].save_pretrained(tmp_path)
    assert f"{tmp_path} is {words}" in refusal(tmp_path)


def test_a_kind_that_transformers_does_not_know_is_told_with_versions(tmp_path):
    told = of_config(tmp_path, model_type="llava_of_2031", transformers_version="9.1")
    assert f"transformers {transformers.__version__} does not know, it was saved by 9.1; pip install -U" in told
    assert "names no model_type" in of_config(tmp_path, hidden_size=3)


def test_code_that_comes_with_a_model_must_be_trusted(tmp_path):
    config = {"model_type": "ovis", "architectures": ["Ovis"], "auto_map": {"AutoModel": "modeling.Ovis"}}
    assert "comes with code of its own, which runs only if you trust it" in of_config(tmp_path, **config)
    assert "no weights" in refusal(tmp_path, trust_remote_code=True)


@pytest.mark.parametrize(
    "config, twin",
    [
        ({"hidden_size": 4096}, "llava-hf/llava-1.5-7b-hf"),
        ({"hidden_size": 5120, "model_type": "llava_llama"}, "llava-hf/llava-1.5-13b-hf"),
        ({"hidden_size": 4096, "image_aspect_ratio": "anyres"}, "llava-hf/llava-v1.6-vicuna-7b-hf"),
        (
            {"hidden_size": 4096, "image_aspect_ratio": "anyres", "architectures": ["LlavaMistralForCausalLM"]},
            "llava-hf/llava-v1.6-mistral-7b-hf",
        ),
        ({"hidden_size": 7}, "-hf"),
    ],
)
def test_an_original_checkpoint_in_a_folder_is_answered_with_its_twin(tmp_path, config, twin):
    told = of_config(tmp_path, **{**ORIGINAL, **config})
    assert "original LLaVA checkpoint" in told and twin in told


def test_the_tables_are_those_of_transformers():
    """An independent reading: what Python itself makes of the modules."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    assert kinds._table("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES") >= {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    assert kinds._known() >= {*CONFIG_MAPPING_NAMES}
    for kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        kinds.refuse_kind({"model_type": kind}, "it")


def test_a_kind_that_somebody_registered_is_left_to_transformers(monkeypatch):
    class Mine(LlamaConfig):
        model_type = "mine"

    with pytest.raises(lp.BadModel, match="does not know"):
        kinds.refuse_kind({"model_type": "mine"}, "it")
    transformers.AutoConfig.register("mine", Mine)
    try:
        kinds.refuse_kind({"model_type": "mine"}, "it")
    finally:
        transformers.CONFIG_MAPPING._extra_content.pop("mine")


def test_missing_and_damaged_weights_are_named(copied):
    look(copied)
    shards = sorted(copied.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    last = shards[-1]
    whole = last.read_bytes()
    last.unlink()
    assert f"lacks 1 of its {len(shards)} files of weights: {last.name}" in refusal(copied)
    last.write_bytes(whole[:-8])
    assert f"{last.name} of {copied} is cut short" in refusal(copied)
    last.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "a pointer of Git LFS" in refusal(copied)
    for damaged in (b"", struct.pack("<Q", 2**60), struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a": [1]}'):
        last.write_bytes(damaged)
        assert f"{last.name} of {copied} is damaged" in refusal(copied)
    last.write_bytes(whole)
    (copied / "model.safetensors.index.json").write_text("[]")
    assert "damaged model.safetensors.index.json" in refusal(copied)
    (copied / "model.safetensors.index.json").unlink()
    assert "a config.json and no weights" in refusal(copied)
    (copied / "tf_model.h5").touch()
    assert "weights for TensorFlow" in refusal(copied)


def test_a_model_without_its_processor_says_how_to_add_it(copied):
    for name, what in (("tokenizer*", "tokenizer"), ("*processor_config.json", "image processor")):
        for path in copied.glob(name):
            path.unlink()
        assert f"a model and no {what}" in refusal(copied)


def test_a_damaged_config_is_told(copied):
    for written in ("{", "[]", "[" * 100_000, '{"a":' * 100_000):
        (copied / "config.json").write_text(written)
        assert "config.json of" in refusal(copied) and "is damaged" in refusal(copied)


def test_a_kind_that_is_no_text_is_none(tmp_path):
    assert "names no model_type" in of_config(tmp_path, model_type=["llava"])


def test_a_damaged_setting_that_transformers_does_without_is_told(copied):
    for written in (b"", b"\0", b"3"):
        (copied / "generation_config.json").write_bytes(written)
        assert "generation_config.json of" in refusal(copied) and "is damaged" in refusal(copied)
    (copied / "generation_config.json").unlink()
    os.mkfifo(copied / "generation_config.json")
    assert "is a pipe" in refusal(copied)


@pytest.mark.parametrize("table", ["[" * 100_000, "[]", '{"weight_map": {"a": 3}}', '{"weight_map": []}', "{}"])
def test_a_damaged_table_of_files_is_told(copied, table):
    (copied / "model.safetensors.index.json").write_text(table)
    assert "has a damaged model.safetensors.index.json" in refusal(copied)


@pytest.mark.parametrize("header", [b"[" * 100_000, b'{"a": {"dtype": 3}}', b'{"a": {"dtype": "F32", "shape": [-1]}}'])
def test_a_damaged_header_of_weights_is_told(copied, header):
    name = next(copied.glob("model-*.safetensors"))
    name.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "it has no table of tensors" in refusal(copied)


# --- names on the hub ---


@pytest.fixture
def cache(tmp_path):
    """A cache that holds one model's config."""
    commit = tmp_path / "models--llava-hf--llava-1.5-7b-hf" / "snapshots" / "abc"
    commit.mkdir(parents=True)
    (commit / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (commit.parents[1] / "refs").mkdir()
    (commit.parents[1] / "refs" / "main").write_text("abc")
    return tmp_path


def test_a_name_that_is_not_there_tells_the_cache_and_what_is(cache, monkeypatch):
    told = refusal("llava-hf/llava-1.5-13b-hf", cache_dir=cache)
    assert told == (
        f"llava-hf/llava-1.5-13b-hf is not in the cache {cache}, and nothing is downloaded (offline); "
        "in the cache are llava-hf/llava-1.5-7b-hf; the model that ships inside is called 'tiny'"
    )
    assert "revision v2 of llava-hf/llava-1.5-7b-hf is not in the cache" in refusal(
        "llava-hf/llava-1.5-7b-hf", cache_dir=cache, revision="v2"
    )
    assert "no weights" in refusal("llava-hf/llava-1.5-7b-hf", cache_dir=cache)
    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr(hub, "_endpoint", lambda: "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "getproxies", dict)
    assert "http://127.0.0.1:9 did not answer within 1.5 s: no network?" in refusal("a/b", cache_dir=cache)
    assert look("llava-hf/llava-1.5-7b-hf", cache_dir=cache).where == "llava-hf/llava-1.5-7b-hf"
    assert "load it by its name, 'llava-hf/llava-1.5-7b-hf'" in refusal(cache / "models--llava-hf--llava-1.5-7b-hf")


@pytest.mark.parametrize("name", ["Tiny", "tinny", "TINY"])
def test_a_mistyped_tiny_is_told(name):
    assert "did you mean 'tiny'" in refusal(name)


# --- adapters ---


@pytest.fixture
def adapter(saved, tmp_path):
    """An adapter of the saved model, in a folder of its own."""
    torch.manual_seed(0)
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = random_llava()
    model.config._name_or_path = str(saved)
    made = peft.get_peft_model(model, settings)
    made.peft_config["default"].base_model_name_or_path = str(saved)
    made.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_folder_of_an_adapter_loads_its_model_with_it(saved, adapter):
    by_folder, by_hand, bare = load(adapter), load(saved, adapter=adapter), load(saved)
    inputs = bare.model_inputs(tiny.scene(3).image, "what is it")[0]
    one, two, plain = (vlm.model(**inputs).logits for vlm in (by_folder, by_hand, bare))
    assert torch.equal(one, two) and not torch.allclose(one, plain)
    with by_folder.model.disable_adapter():
        torch.testing.assert_close(by_folder.model(**inputs).logits, plain)


def test_an_adapter_whose_model_is_not_there_names_it(adapter):
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}))
    told = refusal(adapter)
    assert told.startswith(f"{adapter} is an adapter of llava-hf/llava-1.5-7b-hf, which cannot be loaded")
    assert f"--model MODEL --adapter {adapter}" in told
    path.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    assert "does not say of which model" in refusal(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    assert "without its weights" in refusal(adapter)


def test_what_is_no_adapter_is_told(saved, adapter, monkeypatch):
    assert f"{saved} is no adapter" in refusal("tiny", adapter=saved)
    assert "is an adapter too" in refusal(adapter, adapter=adapter)
    with pytest.raises(lp.BadModel, match="does not fit"):
        load("tiny", adapter=adapter)
    monkeypatch.setattr(folder, "find_spec", lambda name: None)
    assert "pip install peft" in refusal(saved, adapter=adapter)


# --- in time ---


def test_nothing_heavy_is_imported_for_a_refusal(tmp_path):
    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    code = (
        "import sys, llava_probe as lp\n"
        "try: lp.load(sys.argv[1])\n"
        "except lp.BadModel as error: print(error)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    told, heavy = done.stdout.splitlines()
    assert re.search("text-only: LlamaForCausalLM", told) and heavy == "[]"
