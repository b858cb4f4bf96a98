"""Each private name of others that we rely on does what we take it for; each failure says what of ours then breaks."""

from __future__ import annotations

import ast
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoProcessor,
    DynamicCache,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    TemperatureLogitsWarper,
    processing_utils,
)
from transformers.models.auto import video_processing_auto
from transformers.models.llama import modeling_llama
from transformers.utils.output_capturing import OutputRecorder

import llava_probe as lp
from llava_probe.inside import seam
from llava_probe.inside.isolation import isolated
from tests import zoo
from tests.models import llava_processor, photo, random_llava

PACKAGE = Path(lp.__file__).parent


@pytest.fixture(scope="module")
def vlm() -> lp.VLM:
    return lp.VLM(random_llava(), llava_processor())


@pytest.fixture(scope="module")
def inputs(vlm):
    return vlm.model_inputs(photo(), "What is this?")[0]


@pytest.fixture(scope="module")
def attention(vlm) -> nn.Module:
    return vlm.model.model.language_model.layers[0].self_attn


# --- models ---


def test_a_model_says_what_its_blocks_are(vlm):
    decoder = vlm.model.model.language_model
    records = seam.recorded_classes(decoder)
    for kind, expected in (("hidden_states", "LlamaDecoderLayer"), ("attentions", "LlamaAttention")):
        found = [module for name, module in decoder.named_modules() if seam.is_one_of(records[kind], name, module)]
        assert [type(module).__name__ for module in found] == [expected] * 4, (
            f"_can_record_outputs no longer tells {kind}: anatomy() takes every model for one without blocks"
        )


def test_a_recorder_names_a_class_and_a_place():
    spec, module = OutputRecorder(nn.Linear, index=1, layer_name="own.attn"), nn.Linear(2, 2)
    assert seam.is_one_of(spec, "blocks.0.own.attn", module) and not seam.is_one_of(spec, "blocks.0.cross", module), (
        "OutputRecorder keeps target_class or layer_name elsewhere: too much or too little is taken for attention"
    )


def test_a_config_tells_the_kinds_of_its_layers():
    kinds = seam.layer_kinds(Gemma3TextConfig(num_hidden_layers=6))
    assert len(kinds) == 6 and set(kinds) == {"sliding_attention", "full_attention"}, (
        "layer_types is another list: trace.sizes.other_layers does not say what a layer without attention is"
    )
    assert not seam.layer_kinds(LlamaConfig())


def test_a_config_tells_of_shared_keys():
    assert seam.shares_keys(Gemma3nTextConfig(num_kv_shared_layers=2)) and not seam.shares_keys(LlamaConfig()), (
        "num_kv_shared_layers has another name: rows of the prompt are missing in Gemma 3n's last layers"
    )


def test_a_decoder_tells_of_features_that_it_adds_between_its_blocks(vlm):
    qwen = pytest.importorskip("transformers.models.qwen3_vl.modeling_qwen3_vl").Qwen3VLTextModel
    assert seam.adds_features_later(qwen.__new__(qwen)) and not seam.adds_features_later(vlm.anatomy.decoder.owner), (
        "deepstack features come under another name: an ablation of a picture's tokens leaves them where they are added"
    )


def test_a_block_tells_of_earlier_states_that_it_reads(vlm):
    inkling = pytest.importorskip("transformers.models.inkling2.modeling_inkling2").Inkling2FullDecoderLayer
    assert seam.reads_earlier_states(inkling.__new__(inkling)), "they have another name: a patch does not say so"
    assert not seam.reads_earlier_states(vlm.anatomy.decoder.blocks[0])


def test_a_model_says_what_it_reads(vlm):
    assert seam.reads_pictures(vlm.model) and not seam.reads_pictures(vlm.model.model.language_model), (
        "input_modalities tells otherwise: models of speech are taken for towers, or models of pictures refused"
    )


def test_a_model_says_whether_it_takes_the_fused_kernel(vlm):
    assert seam.takes_sdpa(vlm.model), "_supports_sdpa is gone: a tower is measured with eager attention, or not at all"


def test_a_model_is_built_from_a_config(vlm):
    with torch.device("meta"):
        made = seam.built(type(vlm.model), vlm.model.config, dtype=torch.bfloat16)
    assert made.device.type == "meta" and made.dtype == torch.bfloat16, (
        "_from_config builds elsewhere or otherwise: lp.load(random_weights=...) and Ray's workers fail"
    )


def test_a_checkpoint_tells_where_it_is_from():
    from llava_probe import tiny

    assert seam.checkpoint(lp.load().model.config) == str(tiny.path()), (
        "_name_or_path is not what was loaded: provenance names no model"
    )
    config = LlamaConfig()
    seam.rename(config, "elsewhere")
    assert seam.checkpoint(config) == "elsewhere", "_name_or_path stays: a random control has its twin's name"


def test_a_checkpoint_tells_its_revision(tmp_path):
    from llava_probe import tiny

    commit, repository = "c0ffee" + "0" * 34, tmp_path / "models--somebody--llava"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tiny.path(), repository / "snapshots" / commit)
    config = lp.load("somebody/llava", cache_dir=tmp_path).model.config
    assert seam.revision(config) == commit, (
        "the commit of a checkpoint is not known: provenance does not tell which revision was read"
    )
    config.save_pretrained(tmp_path)
    other = PreTrainedConfig.from_pretrained(tmp_path)
    assert seam.revision(other) is None, (
        "_commit_hash is saved with a config: a fine-tuned copy says that it is the checkpoint that it was made from"
    )
    seam.note_revision(other, commit)
    assert seam.revision(other) == commit, "_commit_hash cannot be written: provenance does not tell a revision"


def test_accelerate_says_where_offloaded_weights_run():
    hooks = pytest.importorskip("accelerate.hooks")
    module = nn.Linear(2, 2)
    assert seam.offload_device(module) is None
    hooks.add_hook_to_module(module, hooks.AlignDevicesHook(execution_device="cpu"))
    assert seam.offload_device(module) == torch.device("cpu"), (
        "_hf_hook.execution_device is elsewhere: ids of an offloaded model go to the wrong device"
    )


def test_recorders_come_off_and_others_stay(inputs):
    model = random_llava()
    model(**inputs, output_hidden_states=True)
    blocks = list(model.model.language_model.layers)
    blocks[0].register_forward_hook(own := (lambda *_: None))
    assert any(block._forward_hooks for block in blocks[1:]), (
        "transformers records without hooks: without_recorders has nothing to do; drop it"
    )
    states = [seam.without_recorders(module.__reduce_ex__(4)[2]) for module in model.modules()]
    hooks = [hook for state in states for hook in state["_forward_hooks"].values()]
    assert hooks == [own], (
        "the recorders come from elsewhere than transformers.utils.output_capturing: a model cannot be sent to Ray"
    )
    installed = [module for module in model.modules() if "_output_capturing_hooks_installed" in vars(module)]
    assert installed and not any("_output_capturing_hooks_installed" in state for state in states), (
        "_output_capturing_hooks_installed has another name: a sent model never records again"
    )


def test_blocks_compute_again_and_no_longer():
    model = random_llava()
    blocks = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    seam.recompute(model, True)
    assert blocks and any(block.gradient_checkpointing for block in blocks), "no block computes again"
    seam.recompute(model, False)
    assert not any(block.gradient_checkpointing for block in blocks), "a model is given back that computes all twice"


def test_an_adapter_may_hold_whole_modules_and_nothing_else():
    peft = pytest.importorskip("peft")
    whole = ["model.multi_modal_projector"]
    model = peft.get_peft_model(
        random_llava(), peft.LoraConfig(target_modules=seam.no_targets(), modules_to_save=whole)
    )
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all(".multi_modal_projector.modules_to_save." in name for name in trained), "PEFT wants targets"


def test_an_adapters_layers_tell_their_state():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(random_llava(), peft.LoraConfig(target_modules=["q_proj"], r=4)).eval()
    layers = [module for module in model.modules() if seam.is_adapter(module)]
    assert len(layers) == 4 + 3, "merged_adapters is no longer a name of every adapter's layer: adapters are not seen"
    assert seam.adapter_configs(model) == {"default": "LORA, rank 4"}, "peft_config has another shape"
    state = seam.adapter_state(layers[0])
    assert state["active"] == ["default"] and state["merged"] == [] and state["scaling"] == {"default": 2.0}, (
        "a layer tells its state by other names: another scaling is taken for the same model"
    )
    model.base_model.disable_adapter_layers()
    assert seam.adapter_state(layers[0])["active"] == [], "disable_adapters is gone: an adapter that is off counts"
    assert not seam.is_adapter(model) and seam.adapter_configs(random_llava()) == {}


def test_prompts_tell_whether_they_are_on():
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = peft.get_peft_model(random_llava(), config)
    assert seam.active_prompts(model) == ["default"] and seam.active_prompts(random_llava()) == []
    with model.disable_adapter():
        assert seam.active_prompts(model) == [], "_adapters_disabled is gone: a prefix that is off counts as on"
    assert seam.forward_in_place(model) is None, "what PEFT leaves behind is taken for somebody's forward"


def test_hooks_and_forwards_of_others_are_found(inputs):
    model = random_llava()
    model(**inputs, output_hidden_states=True)
    assert not [hook for module in model.modules() for hook in seam.hooks_of_others(module)], (
        "transformers' own recorders count as somebody's: a model is another one after its first pass"
    )
    model.lm_head.register_forward_hook(own := (lambda *_: None))
    model.lm_head.register_forward_pre_hook(own)
    assert seam.hooks_of_others(model.lm_head) == [own, own], "hooks lie elsewhere: a steered model is not told"
    model.lm_head.forward = (instead := model.lm_head.forward.__call__)
    assert seam.forward_in_place(model.lm_head) is instead
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(module := nn.Linear(2, 2), hooks.AlignDevicesHook(execution_device="cpu"))
    assert seam.forward_in_place(module) is None, "_hf_hook is gone: a model on two devices is told as changed"


# --- attention ---


def test_a_config_tells_its_kernel():
    assert seam.implementation(random_llava(attention="eager").config.text_config) == "eager", (
        "_attn_implementation is gone: no kernel is found to read rows beside"
    )


def test_a_kernel_is_changed_for_the_next_pass(inputs):
    model = random_llava()
    config = model.model.language_model.config
    seam.set_implementation(config, "eager")
    weights = [module.register_forward_hook(lambda _m, _a, out: seen.append(out[1])) for module in attentions(model)]
    seen: list[Tensor | None] = []
    model(**inputs)
    assert len(weights) == len(seen) == 4 and all(each is not None for each in seen), (
        "a write to _attn_implementation_internal does not reach the modules: lp.check compares a kernel with itself"
    )


def attentions(model) -> list[nn.Module]:
    return [layer.self_attn for layer in model.model.language_model.layers]


@pytest.fixture
def deaf(monkeypatch):
    """A transformers whose configs keep the kernel's name elsewhere than we write it."""
    names: dict[int, str] = {}

    def read(self):
        return names.get(id(self), "sdpa")

    def write(self, value):
        names[id(self)] = value or "sdpa"

    monkeypatch.setattr(PreTrainedConfig, "_attn_implementation", property(read, write))


def test_a_kernel_that_does_not_change_is_refused(deaf):
    config = LlamaConfig()
    with pytest.raises(lp.BadModel, match="does not take 'eager' as the attention of LlamaConfig"):
        seam.set_implementation(config, "eager")


def test_a_check_that_would_compare_a_kernel_with_itself_is_refused(deaf):
    vlm = lp.VLM(random_llava(), llava_processor())
    with pytest.raises(lp.BadModel, match="keeps its kernel's name elsewhere"):
        lp.check(vlm, max_new_tokens=2)
    assert not vlm.checks


def test_a_measurement_whose_kernel_is_not_ours_is_refused(deaf, monkeypatch):
    vlm = lp.VLM(random_llava(), llava_processor(), layout="measured")
    monkeypatch.setattr(seam, "takes_sdpa", lambda _part: False)  # so that it asks for another kernel
    with pytest.raises(lp.BadModel, match="keeps its kernel's name elsewhere"), isolated(vlm.model):
        pytest.fail("it went on")
    places = vlm.generate(photo(), "What is this?", max_new_tokens=1).provenance["places"]
    assert "keeps its kernel's name elsewhere" in places


def test_a_module_looks_its_kernel_up(attention):
    assert seam.reads_interface(attention) and not seam.reads_interface(nn.Linear(2, 2)), (
        "ALL_ATTENTION_FUNCTIONS is not what a forward reads: every layer runs eager with a warning"
    )


def test_a_file_has_its_table(vlm):
    assert [*seam.kernel_tables(vlm.model)] == [modeling_llama.ALL_ATTENTION_FUNCTIONS], (
        "ALL_ATTENTION_FUNCTIONS is no global of modeling files: rows of models with tables of their own are missing"
    )


def test_a_kernel_that_is_registered_is_called(inputs):
    calls, sdpa = [], seam.shared_kernels()["sdpa"]
    try:
        seam.register_kernel("sdpa", lambda *args, **kwargs: (calls.append(args[0]), sdpa(*args, **kwargs))[1])
        random_llava()(**inputs)
    finally:
        seam.register_kernel("sdpa", sdpa)
    assert len(calls) == 4 + 3, (
        "AttentionInterface.register does not reach the modules' table: no twin of a kernel is called, rows are missing"
    )
    assert seam.shared_kernels()["sdpa"] is sdpa


def test_an_entry_of_a_files_own_hides_the_shared_one():
    table, shared = type(modeling_llama.ALL_ATTENTION_FUNCTIONS)(), seam.shared_kernels()
    assert table["sdpa"] is shared["sdpa"]
    table["sdpa"] = own = object()
    assert table["sdpa"] is own and shared["sdpa"] is not own, (
        "a table's own entry is everybody's: the twin of one model stands in all"
    )


def test_the_eager_kernel_is_a_global_of_the_file(vlm):
    found = {(file["__name__"].rpartition(".")[2], name) for file, name in seam.eager_kernels(vlm.model)}
    assert ("modeling_llama", "eager_attention_forward") in found, (
        "eager_attention_forward has another name: rows of an eager model are missing"
    )


def test_masks_are_asked_for_in_the_known_words(vlm, inputs):
    asked: list[seam.attention.MaskAsked | None] = []
    named: list[dict] = []
    table = seam.mask_table()
    before = table["sdpa"]

    def function(*args, **kwargs):
        asked.append(seam.mask_asked(kwargs))
        named.append(kwargs)
        return before(*args, **kwargs)

    try:
        seam.register_mask("sdpa", function)
        vlm.model(**inputs)
    finally:
        seam.register_mask("sdpa", before)
    length, config = inputs["input_ids"].shape[1], vlm.model.model.language_model.config
    ours = [number for number, one in enumerate(asked) if one is not None and one.config is config]
    assert ours and asked[ours[0]].sizes == (1, length, length) and "dtype" in named[ours[0]], (
        "mask functions are asked in other words or by another table: questions of one picture go one by one, slowly"
    )
    mask = seam.mask_of(asked[ours[0]].rule, named[ours[0]], torch.device("cpu"))
    assert torch.equal(mask[0, 0], torch.ones(length, length, dtype=torch.bool).tril()), (
        "sdpa_mask makes another mask of a rule: packed questions see each other"
    )


# --- generation ---


def test_settings_lead_to_a_config(vlm):
    made = seam.generation_config(vlm.model, None, {"max_new_tokens": 3, "num_beams": 2})
    assert (made.max_new_tokens, made.num_beams) == (3, 2), (
        "_prepare_generation_config reads settings otherwise: every generate is refused, or nothing is"
    )


@pytest.mark.parametrize(("family", "column"), [("paligemma", 1), ("gemma3", 0)])
def test_the_next_step_is_the_models_own(family, column):
    vlm = zoo.vlm(family)
    given, _ = vlm.model_inputs(photo(), "What is this?")
    after = seam.next_inputs(vlm.model, given)
    assert after["attention_mask"].shape[1] == given["attention_mask"].shape[1] + 1, (
        "_update_model_kwargs_for_generation does not lengthen the mask: every score fails"
    )
    assert int(after["token_type_ids"][0, -1]) == column, (
        "_update_model_kwargs_for_generation marks an answer's tokens otherwise: scores differ from generate's"
    )


def test_a_model_says_whether_it_encodes_pictures_first(vlm, inputs):
    batches: list[int] = []
    hook = vlm.model.model.vision_tower.register_forward_hook(lambda _m, _a, out: batches.append(len(out[0])))
    vlm.model.generate(**inputs, max_new_tokens=2, num_beams=3)
    hook.remove()
    assert batches == ([1] if seam.encodes_first(vlm.model) else [3]), (
        "mm_encoder_outputs says nothing of where pictures are encoded: vision records are doubled under beams"
    )


def test_a_cache_shows_its_keys_and_values(vlm, inputs):
    cache = vlm.model(**inputs, use_cache=True).past_key_values
    held, length = seam.keys_and_values(cache), inputs["input_ids"].shape[1]
    assert [tuple(part.shape) for pair in held for part in pair] == [(1, 2, length, 16)] * 8, (
        "a cache's layers keep keys and values elsewhere: occlusion reads the shared prefix again in each pass, slowly"
    )
    assert seam.is_whole(cache), "DynamicLayer has another name: no prefix is shared by changed inputs"
    sliding = DynamicCache(config=Gemma3TextConfig(num_hidden_layers=6, sliding_window=4))
    assert not seam.is_whole(sliding), "a window's layer looks whole: a prefix is shared that was let go"


def test_a_compiled_model_is_known():
    model = random_llava()
    assert not seam.is_compiled(model)
    model.model.language_model.compile(backend="eager")
    assert seam.is_compiled(model), (
        "compile() leaves no mark: a change that a graph goes past is told as a missing place"
    )
    other = random_llava()
    other.forward = torch.compile(other.forward, backend="eager")
    assert seam.is_compiled(other)


def test_a_cache_takes_keys_and_values_as_they_are_and_goes_on_from_them():
    cache, given = DynamicCache(), torch.randn(3, 2, 5, 4)
    cache.update(given[:1, :, :1], given[:1, :, :1], 0)
    seam.hold(cache, 0, given, given + 1)
    assert seam.keys_and_values(cache)[0][0] is given and cache.get_seq_length() == 5, (
        "a cache's layers keep keys and values elsewhere: sweeps read the shared beginning again, slowly"
    )
    keys, values = cache.update(torch.ones(3, 2, 1, 4), torch.ones(3, 2, 1, 4), 0)
    assert torch.equal(keys[:, :, :5], given) and torch.equal(values[:, :, :5], given + 1) and keys.shape[2] == 6


# --- layouts ---


def test_a_processor_tells_the_settings_of_a_call():
    processor = zoo.vlm("gemma3").processor
    settings = seam.call_settings(processor, {"do_convert_rgb": False}, "images_kwargs")
    assert settings["do_convert_rgb"] is False and "do_pan_and_scan" in settings, (
        "_merge_kwargs leaves out a processor's own defaults: boxes are those of other settings"
    )


def test_tiles_and_canvases_are_the_families_own():
    internvl = zoo.vlm("internvl").processor.image_processor
    assert seam.best_tiles(internvl, (100, 310), (48, 48), (1, 6)) == (3, 1), (
        "get_optimal_tiled_canvas is not where the image processor is: InternVL's places are measured, slowly"
    )
    assert seam.best_canvas((50, 100), [[48, 48], [48, 96], [96, 96]]) == (48, 96), (
        "select_best_resolution chooses otherwise: places of LLaVA-NeXT are measured"
    )
    assert seam.size_on_canvas((50, 200), (96, 96)) == (24, 96), (
        "get_patch_output_size pads otherwise: places of LLaVA-NeXT are measured"
    )


def test_sizes_are_read_as_processors_read_them():
    why = "sizes are read otherwise: places of LLaVA-1.5 are measured"
    assert seam.size_limits(48, square=True) == {"height": 48, "width": 48}, why
    assert seam.size_limits(48, square=False) == {"shortest_edge": 48}, why
    assert seam.size_to_fit((100, 150), 48) == (48, 72), why
    processor = llava_processor().image_processor
    assert processor.center_crop(np.zeros((3, 60, 70)), seam.size_of(40, 50)).shape == (3, 40, 50), why


def test_features_are_packed_as_the_model_packs_them():
    model = zoo.vlm("llava_next").model
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    crop = model.config.vision_config.image_size
    rows, columns = (edge // crop for edge in seam.best_canvas((crop, crop), model.config.image_grid_pinpoints))
    views = torch.tensor([0.0, *[1.0] * (rows * columns)])[:, None, None].expand(-1, side * side, 3)
    packed = seam.packed_features(model, views, (crop, crop), torch.full((3,), -9.0), None)
    assert packed.shape[-1] == 3 and [*packed[: side * side, 0]] == [0.0] * (side * side) and -9.0 in packed[:, 0], (
        "pack_image_features takes or gives something else: places of LLaVA-NeXT and OneVision are measured"
    )


def test_features_of_frames_are_pooled_as_the_model_pools_them():
    model = zoo.vlm("llava_onevision").model
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    pooled = seam.pooled_features(model, torch.ones(2, side * side, 5))
    assert pooled.shape == (2, (-(-side // 2)) ** 2, 5) and torch.allclose(pooled, torch.ones(())), (
        "apply_pooling pools otherwise: places of LLaVA-OneVision's frames are measured"
    )


# --- processors ---


def test_a_processor_is_loaded_without_its_part_for_videos(monkeypatch, tmp_path):
    _, processor = zoo.build("qwen2_vl")
    processor.save_pretrained(tmp_path)
    own = (video_processing_auto.AutoVideoProcessor, dict(processing_utils.MODALITY_TO_BASE_CLASS_MAPPING))
    monkeypatch.setattr(seam.processors, "find_spec", lambda name: None)
    with seam.videos_optional():
        without = AutoProcessor.from_pretrained(tmp_path)
    assert without.video_processor.merge_size == processor.video_processor.merge_size, (
        "AutoVideoProcessor or the check of a processor's parts is elsewhere: Qwen2-VL does not load in a plain install"
    )
    with pytest.raises(lp.BadInput, match="videos need torchvision"):
        without.video_processor([])
    assert own == (video_processing_auto.AutoVideoProcessor, dict(processing_utils.MODALITY_TO_BASE_CLASS_MAPPING))
    assert type(AutoProcessor.from_pretrained(tmp_path).video_processor) is type(processor.video_processor)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "idefics3"])
def test_a_processors_settings_are_those_that_it_does_not_pass_over(family, monkeypatch):
    _, processor = zoo.build(family)
    known = seam.settings_of(processor)
    passed_over = []
    monkeypatch.setattr(processing_utils.logger, "warning_once", passed_over.append)
    for name in ("nonsense", "images_kwargs", "do_resize", "padding", "return_tensors", "size", "resample"):
        passed_over.clear()
        processor._merge_kwargs(processor.valid_processor_kwargs, **{name: {} if name.endswith("_kwargs") else None})
        assert (name not in known) == bool(passed_over), "transformers merges a processor's settings in another way"


# --- torch ---


def test_a_tensor_counts_what_is_written_to_it():
    tensor = torch.zeros(3)
    before = seam.version(tensor)
    tensor[0] = 1
    assert seam.version(tensor) != before, "_version stands still: a weight that changed is not read again"
    with torch.inference_mode():
        assert seam.version(torch.zeros(3)) is None


def test_a_subclass_tells_its_tensors():
    from torch.testing._internal.two_tensor import TwoTensor

    one, two = torch.zeros(3), torch.ones(3)
    assert {name: id(part) for name, part in seam.inner_tensors(TwoTensor(one, two)).items()} == {
        "a": id(one),
        "b": id(two),
    }, "__tensor_flatten__ is gone: the numbers of torchao's weights are not seen"
    assert seam.inner_tensors(nn.Parameter(one)) == {}


class Shown(Tensor):
    """A subclass that answers nothing by itself."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return seam.as_plain_tensor(func, args, kwargs or {}) if func == Tensor.shape.__get__ else NotImplemented


def test_a_tensor_of_a_subclass_has_anothers_memory():
    plain = torch.zeros(2, 3)
    shown = seam.shown_as(Shown, plain)
    assert type(shown) is Shown, "_make_subclass makes no subclass: layers of a feature store are not read lazily"
    assert shown.shape == (2, 3), "DisableTorchFunctionSubclass does not stand aside: a store's shape is never told"
    plain[0, 0] = 5
    assert seam.as_plain_tensor(Tensor.sum, (shown,), {}) == 5, "_make_subclass copies: a large layer fills the memory"


@pytest.mark.parametrize(
    ("operator", "changes"),
    [(torch.ops.aten.add_.Tensor, True), (torch.ops.aten.add.out, True), (torch.ops.aten.add.Tensor, False)],
)
def test_an_operator_says_whether_it_writes(operator, changes):
    assert seam.writes(operator) is changes, "func._schema.is_mutable tells otherwise: a feature store is written to"


def test_a_function_mode_sees_attention_and_softmax():
    seen: list[str] = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            given = seam.fused_attention_of(func, args, kwargs or {})
            if given is not None:
                assert [int(each.mean()) for each in given] == [1, 2, 3]
                seen.append("attention")
            if seam.is_softmax(func):
                seen.append("softmax")
            return func(*args, **(kwargs or {}))

    query, key, value = (torch.full((1, 1, 4, 2), each) for each in (1.0, 2.0, 3.0))
    with Mode():
        functional.scaled_dot_product_attention(query, key, value=value)
        torch.softmax(query, -1)
        functional.softmax(query, dim=-1)
        query.softmax(-1)
    assert seen == ["attention", "softmax", "softmax", "softmax"], (
        "attention or softmax goes past function modes: no patch is alone, so measured boxes grow or are refused"
    )


def test_a_graph_names_its_operations():
    one, other = (torch.rand(3, 4, requires_grad=True) for _ in range(2))
    linear = {
        "Add": one + other,
        "Sub": one - other,
        "Neg": -one,
        "Sum": one.sum(),
        "Mean": one.mean(),
        "ToCopy": one.double(),
        "Clone": one.clone(),
        "Alias": torch.ops.aten.alias(one),
        "T": one.t(),
        "Transpose": one.transpose(0, 1),
        "Permute": one.permute(1, 0),
        "View": one.view(-1),
        "UnsafeView": torch.ops.aten._unsafe_view(one, [12]),
        "Expand": one.expand(2, 3, 4),
        "Repeat": one.repeat(2, 1),
        "Squeeze": one.squeeze(),
        "Unsqueeze": one.unsqueeze(0),
        "Slice": one[1:],
        "Select": one[1],
        "Split": one.split(2)[0],
        "SplitWithSizes": one.split([1, 2])[0],
        "Unbind": one.unbind()[0],
        "Cat": torch.cat([one, other]),
        "Stack": torch.stack([one, other]),
        "ViewAsComplex": torch.view_as_complex(one.view(3, 2, 2)),
        "ViewAsReal": torch.view_as_real(torch.view_as_complex(one.view(3, 2, 2))),
    }
    square = torch.rand(4, 4, requires_grad=True)
    products = {
        "Mul": one * other,
        "Mm": one @ square,
        "Addmm": functional.linear(one, square, torch.rand(4)),
        "Bmm": torch.bmm(one[None], square[None]),
        "Div": one / other,
    }
    for name, made in (linear | products).items():
        assert seam.operation(made.grad_fn) == name, (
            f"autograd calls {name} {made.grad_fn.name()}: attnlrp refuses every model, or follows what has no rule"
        )
        assert seam.is_linear(made.grad_fn) is (name in linear) and seam.is_product(made.grad_fn) is (name in products)
    (leaf,) = (node for node in seam.made_of((one * 2).grad_fn) if node is not None)
    assert seam.operation(leaf) == "AccumulateGrad" and seam.is_linear(leaf), (
        "next_functions does not lead on to the leaves: attnlrp looks at one operation alone"
    )
    assert seam.divides((one / other).grad_fn) and not seam.divides((one / 2).grad_fn), (
        "Div hides its divisor: attnlrp follows a division by something in the graph"
    )
    assert not seam.is_linear(one.exp().grad_fn) and not seam.is_product(one.exp().grad_fn)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * 0.5


def test_a_function_of_ones_own_is_known_by_its_class():
    made = Halved.apply(torch.ones(2, requires_grad=True))
    assert seam.operation(made.grad_fn) == "Halved", "attnlrp takes its own rules for operations without a rule"


def test_a_graph_that_was_cut_is_seen():
    given = torch.rand(2, 3, requires_grad=True)
    assert not seam.is_cut(given * 2) and seam.is_cut((given * 2).detach())
    without = torch.ops.aten._cummax_helper  # no derivative is written for it
    values, indices = torch.empty(2, 3), torch.empty(2, 3, dtype=torch.long)
    try:
        without(given * 2, values, indices, 0)
    except RuntimeError:
        pytest.skip("this version of torch has a derivative for it")
    name = values.grad_fn.name() if values.grad_fn is not None else "none"
    assert seam.is_cut(values), f"a graph that ends is called {name}: gradients through quantised weights are wrong"


def test_hooks_whose_handles_were_lost_come_off():
    class Ours:
        def __call__(self, *_args, **_kwargs):
            return None

    module = nn.Linear(2, 2)
    module.register_forward_hook(Ours(), always_call=True)
    module.register_forward_pre_hook(Ours(), with_kwargs=True)
    module.register_forward_hook(own := (lambda *_: None), with_kwargs=True)
    seam.strip_hooks(module, Ours)
    left = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    flags = (module._forward_hooks_with_kwargs, module._forward_hooks_always_called)
    assert left == [own] and [len(each) for each in flags] == [1, 0] and not module._forward_pre_hooks_with_kwargs, (
        "torch keeps hooks elsewhere: an interrupt leaves ours on a model for good"
    )


def test_modes_are_put_back():
    class Mode(TorchFunctionMode):
        pass

    def modes():
        saving = torch._C._autograd._top_saved_tensors_default_hooks(False)
        return torch.is_grad_enabled(), torch._C._len_torch_function_stack(), saving

    before = modes()
    restore = seam.modes_as_now()
    saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor).__enter__()
    torch.set_grad_enabled(False)
    Mode().__enter__()  # refuses all that torch does
    restore()
    restore()  # harmless when said twice
    assert modes() == before, (
        "torch keeps its modes elsewhere: after an interrupt the user's own graph is off, or patches stay alone"
    )


# --- nowhere else ---

#: Names of others without a mark of their own that may change without a word: the seam's, nobody else's.
UNMARKED = {
    *("ALL_ATTENTION_FUNCTIONS", "AttentionInterface", "ALL_MASK_ATTENTION_FUNCTIONS", "AttentionMaskInterface"),
    *("sdpa_mask", "mask_function", "q_length", "kv_length", "use_vmap", "eager_attention_forward"),
    *("mm_encoder_outputs", "DynamicLayer", "num_kv_shared_layers", "layer_types", "input_modalities"),
    *("get_optimal_tiled_canvas", "pack_image_features", "apply_pooling", "select_best_resolution"),
    *("get_patch_output_size", "get_size_dict", "get_resize_output_image_size", "SizeDict", "execution_device"),
    *("scaled_dot_product_attention", "next_functions", "co_names", "__globals__", "__code__"),
    *("transformers.utils.output_capturing", "sys.modules", "torch._C"),
}
#: Files of transformers that are imported outside the seam, and why that is no matter of a private name.
OPEN = {
    "transformers": "what it hands out at its top",
    "transformers.utils": "documented: ModelOutput and logging",
    "transformers.models.auto.modeling_auto": "documented: the mapping of model types that the table of families shows",
    "transformers.models.llama.modeling_llama": "tiny/making/ trains with a rotation of its own; nothing runs it later",
}
#: Files that may say one of these names, and why.
EXEMPT = {
    ("border/settled.py", "sys.modules"): "what was never imported was never set, and is not imported to look",
    ("rooms.py", "sys.modules"): "a room that is called changes its own module",
    ("finetune/training.py", "from accelerate import PartialState"): "a documented class, which its __init__ hands out",
    ("view/app/process.py", "sys.modules"): "as in settled.py: a cache is emptied where there is one",
    ("view/app/process.py", "os._exit"): "a documented function under a private name",
}
#: What looks like a private name of others and is none.
NAMES_OF_OURS = {
    "_token_id": "ends of attributes that processors are searched for",
    "_token_index": "the same in configs",
    "_mask": "the end of inputs' names",
    "_probability": "the end of columns' names",
    "_mean": "the end of places' names",
    "_honest": "the end of the folders of cheats' honest twins",
    "_kwargs": "the end of names of the Trainer's settings",
}


def test_what_generate_takes_by_name_is_known():
    names = seam.generate_names(random_llava())
    message = (
        "generate's arguments are listed otherwise: a mistyped one reaches transformers, or a right one is refused"
    )
    assert {"input_ids", "pixel_values", "streamer", "logits_processor"} <= names, message
    assert not names & {"self", "kwargs", "args"}


def test_private_names_stand_in_the_seam_alone():
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")}
    ours = {name for tree in trees.values() for name in defined(tree)} | set(NAMES_OF_OURS)
    found = [
        f"{file.relative_to(PACKAGE)}:{line} {name}"
        for file, tree in trees.items()
        if "seam" not in file.relative_to(PACKAGE).parts
        for line, name in foreign(tree, ours)
        if (str(file.relative_to(PACKAGE)), name) not in EXEMPT
    ]
    assert not found, "\n".join(["private names of others outside inside/seam/:", *found])


def defined(tree: ast.AST) -> Iterator[str]:
    """Names that a file gives to something of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield from [node.attr] if ast.unparse(node.value) in ("self", "cls") else []


def foreign(tree: ast.AST, ours: set[str]) -> Iterator[tuple[int, str]]:
    """Lines and names: what is private, or imported from a file of transformers that is not open."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            private = node.attr.startswith("_") and not node.attr.startswith("__") and node.attr not in ours
            if private or node.attr in UNMARKED or ast.unparse(node) in UNMARKED:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value in UNMARKED or (re.fullmatch("_[a-z][a-z_]+", node.value) and node.value not in ours):
                yield node.lineno, repr(node.value)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("transformers", "accelerate"):
            names = {alias.name for alias in node.names}
            if node.module not in OPEN or names & UNMARKED or any(name.startswith("_") for name in names):
                yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize(
    "line",
    [
        "config._attn_implementation = 'eager'",
        "getattr(module, '_hf_hook', None)",
        "from transformers.masking_utils import sdpa_mask",
        "from transformers import AttentionInterface",
        "torch._C.DisableTorchFunctionSubclass()",
        "forward.__globals__",
        "'mm_encoder_outputs' in parameters",
        "sys.modules[name]",
    ],
)
def test_a_private_name_would_be_seen(line):
    assert list(foreign(ast.parse(line), set(NAMES_OF_OURS)))


def test_every_part_of_the_seam_is_used_and_tried():
    files = [file for file in PACKAGE.rglob("*.py") if "seam" not in file.relative_to(PACKAGE).parts]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    tried = Path(__file__).read_text(encoding="utf-8")
    assert not [name for name in seam.__all__ if f"seam.{name}" not in text], "nobody needs these"
    assert not [name for name in seam.__all__ if f"seam.{name}" not in tried], "these have no test"


def test_a_logits_processor_is_known_for_transformers_own_or_somebodys():
    """One of its own must reach generate as it is, which leaves out another of the same class."""
    own = TemperatureLogitsWarper(2.0)
    somebodys = type("Warper", (TemperatureLogitsWarper,), {"__module__": "somebody"})(2.0)
    assert seam.is_own_processor(own), "a processor of transformers is wrapped, and applied twice"
    assert not seam.is_own_processor(somebodys) and not seam.is_own_processor(lambda ids, scores: scores)


def test_a_block_that_is_computed_again_is_known():
    """An intervention would be left out of the second computation, and gradients be another model's."""
    model = random_llava().train()
    blocks = model.get_decoder().layers
    assert not any(map(seam.recomputes, blocks)), "gradient_checkpointing is on by itself"
    model.gradient_checkpointing_enable()
    assert all(map(seam.recomputes, blocks)), "a knock-out no longer refuses gradient checkpointing"
    model.eval()
    assert not any(map(seam.recomputes, blocks)), "it is refused where nothing is computed again"


def test_tokens_that_an_adapter_puts_ahead_are_known():
    """Every position would be off by them."""
    peft = pytest.importorskip("peft")
    prefix = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    assert seam.virtual_tokens(peft.get_peft_model(random_llava(), prefix)) == 5, "prefix tuning is taken for the model"
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    assert seam.virtual_tokens(peft.get_peft_model(random_llava(), lora)) == 0, "LoRA is refused"
    assert seam.virtual_tokens(random_llava()) == 0


def test_what_peft_asks_under_an_old_name_is_not_the_users_matter():
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        with seam.under_old_names():
            peft.get_peft_model(random_llava(), peft.LoraConfig(r=1, target_modules=["q_proj"]))
