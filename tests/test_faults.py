"""A refusal of the model's is the user's; a bug, a device and what the user plugged in keep their own errors."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, LogitsProcessor, StoppingCriteria

import llava_probe as lp
from llava_probe.asking.recorder import Recorder
from llava_probe.attribution import prepared
from llava_probe.attribution.engine.perturbing import picture_scores
from llava_probe.inside import rows
from tests.models import photo

QUESTION = "what is the text on the stop sign"
PROMPT = f"USER: <image>\n{QUESTION}\nASSISTANT:"


class Mine(ValueError):
    """An error of the user's own."""


def broken(error):
    def fail(*_args, **_kwargs):
        raise error

    return fail


def broken_in(module, error, otherwise=None):
    """As if a line of that module had raised it; where there is an ``otherwise``, only for more than one sample."""
    names = {"__name__": module, "error": error, "otherwise": otherwise}
    condition = "otherwise is None or len(args[0]) > 1"
    exec(f"def fail(*args, **_kwargs):\n  if {condition}: raise error\n  return otherwise(*args)", names)
    return names["fail"]


DEVICE = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: invalid argument, tensor sizes 3 and 4"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB, size 5"),
    torch.AcceleratorError("an illegal memory access was encountered"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes, size 3"),
]


def run(vlm, how):
    if how == "generate":
        return vlm.generate(photo(), QUESTION, max_new_tokens=2)
    return vlm.score(photo(), QUESTION, "red")


@pytest.mark.parametrize("how", ["generate", "score"])
@pytest.mark.parametrize("error", [TypeError("None + 1"), NameError("x"), ValueError("shapes"), RuntimeError("sizes")])
def test_a_bug_in_our_own_hooks_goes_through_with_a_note(random_vlm, monkeypatch, how, error):
    monkeypatch.setattr(Recorder, "state", broken(error))
    with pytest.raises(type(error)) as caught:
        run(random_vlm, how)
    assert caught.value is error
    assert any("while llava_probe ran" in note and "Llava" in note for note in error.__notes__)


def test_a_bug_in_our_own_arithmetic_is_not_the_users(random_vlm, monkeypatch):
    monkeypatch.setattr(rows.Call, "rows", lambda *_: torch.ones(2, 3) @ torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        random_vlm.generate(photo(), QUESTION, max_new_tokens=1)
    assert not isinstance(caught.value, lp.ProbeError)


@pytest.mark.parametrize("part", ["vision tower", "decoder"])
@pytest.mark.parametrize("error", DEVICE, ids=str)
def test_memory_and_devices_are_nobodys_input(random_vlm, monkeypatch, part, error):
    model = random_vlm.model.model
    owner = model.vision_tower if part == "vision tower" else model.language_model
    monkeypatch.setattr(owner, "forward", broken_in("torch.nn.functional", error))
    with pytest.raises(RuntimeError) as caught:
        random_vlm.generate(photo(), QUESTION, max_new_tokens=1)
    assert caught.value is error


@pytest.mark.parametrize(
    ("part", "error", "refused"),
    [
        ("vision_tower", ValueError("features and tokens do not match"), True),
        ("vision_tower", TypeError("'NoneType' object is not iterable"), True),  # an input that was left out
        ("vision_tower", KeyError("no input"), False),
        ("language_model", RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), True),
        ("language_model", RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"), True),
        ("language_model", RuntimeError("probability tensor contains either inf, nan or element < 0"), False),
        ("language_model", TypeError("unsupported operand type(s): sizes"), False),
        ("language_model", NotImplementedError("not on this backend"), False),
    ],
    ids=str,
)
def test_before_the_decoder_reads_refusals_are_the_inputs_and_then_only_shapes(
    random_vlm, monkeypatch, part, error, refused
):
    target = random_vlm.model.model.vision_tower if part == "vision_tower" else random_vlm.model.lm_head
    monkeypatch.setattr(target, "forward", broken_in("transformers.models.llava.modeling_llava", error))
    with pytest.raises(lp.BadInput if refused else type(error)) as caught:
        random_vlm.generate(photo(), QUESTION, max_new_tokens=1)
    assert (caught.value.__cause__ if refused else caught.value) is error


@pytest.mark.parametrize("where", ["vision_tower", "language_model"])
@pytest.mark.parametrize("error", [Mine("size 3, not 4"), RuntimeError("the shapes of my steering"), TypeError("mine")])
def test_a_users_hook_keeps_its_error(random_vlm, where, error):
    handle = getattr(random_vlm.model.model, where).register_forward_pre_hook(broken(error))
    with pytest.raises(type(error)) as caught:
        random_vlm.generate(photo(), QUESTION, max_new_tokens=1)
    handle.remove()
    assert caught.value is error


class Reshaping(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return torch.cat([scores, scores[:, :-1]])


class Ending(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        raise Mine("the shapes do not fit")


@pytest.mark.parametrize(
    ("plugged", "error"),
    [
        ({"logits_processor": [Reshaping()]}, RuntimeError),
        ({"stopping_criteria": [Ending()]}, Mine),
        ({"prefix_allowed_tokens_fn": broken(Mine("size"))}, Mine),
    ],
    ids=["logits processor", "stopping criterion", "allowed tokens"],
)
def test_what_the_user_plugs_in_keeps_its_error(random_vlm, plugged, error):
    with pytest.raises(error) as caught:
        random_vlm.generate(photo(), QUESTION, max_new_tokens=2, **plugged)
    assert not isinstance(caught.value, lp.ProbeError)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda ready: {"pixel_values": torch.zeros(1, 5)}, "."),
        (lambda ready: {"pixel_values": ready["pixel_values"][:, :, :40]}, "image"),
        (lambda ready: {"pixel_values": ready["pixel_values"][:, :2]}, "refused these inputs.*channels"),
        (lambda ready: {"input_ids": ready["input_ids"][:, :-8]}, "."),
        (lambda ready: {"position_ids": torch.arange(5)[None]}, "position_ids, which the model makes itself"),
    ],
    ids=["flat pixels", "another height", "two channels", "another mask", "positions that are too few"],
)
def test_inputs_that_do_not_fit_are_a_sentence(random_vlm, change, sentence):
    ready = dict(random_vlm.processor(text=PROMPT, images=photo(), return_tensors="pt"))
    with pytest.raises(lp.BadInput, match=sentence) as caught:
        random_vlm.generate(inputs={**ready, **change(ready)}, max_new_tokens=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"do_sample": True, "temperature": -1.0}, "temperature"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"nonsense": 3}, "nonsense"),
    ],
    ids=str,
)
def test_settings_that_generate_refuses_are_a_sentence(random_vlm, setting, sentence):
    with pytest.raises(lp.BadInput, match=sentence):
        random_vlm.generate(photo(), QUESTION, max_new_tokens=1, **setting)


@pytest.mark.parametrize("error", DEVICE, ids=str)
def test_memory_and_devices_do_not_make_a_checkpoint_or_a_picture_bad(random_vlm, monkeypatch, error):
    class Out(type(random_vlm.processor)):
        def __call__(self, **_kwargs):
            raise error

    monkeypatch.setattr(random_vlm.processor, "__class__", Out)
    with pytest.raises(RuntimeError) as caught:
        random_vlm.generate(photo(), QUESTION, max_new_tokens=1)
    assert caught.value is error
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", broken(error))
    with pytest.raises(RuntimeError) as caught:
        lp.load()
    assert caught.value is error
    assert "while llava_probe loaded" in error.__notes__[-1]


@pytest.mark.parametrize(
    ("error", "apart"),
    [
        (RuntimeError("The size of tensor a (3) must match"), True),
        (IndexError("too many indices"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
    ids=str,
)
def test_pictures_are_tried_apart_where_a_family_or_its_memory_takes_one_at_a_time(
    random_vlm, monkeypatch, error, apart
):
    trace = random_vlm.generate(photo(), QUESTION, max_new_tokens=2)
    task, head = prepared(random_vlm, trace, "rise"), random_vlm.model.lm_head
    really = head.forward
    monkeypatch.setattr(head, "forward", broken_in("transformers.models.llava", error, really))
    pictures = [photo(), photo(seed=1)]
    if not apart:
        with pytest.raises(type(error)) as caught:
            picture_scores(task, pictures, batch=2)
        assert caught.value is error
        return
    found = picture_scores(task, pictures, batch=2)
    monkeypatch.setattr(head, "forward", really)
    torch.testing.assert_close(found, picture_scores(task, pictures, batch=1))
