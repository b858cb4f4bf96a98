"""Where places are not known, the reason is told, and found again in a saved trace; only what was found is kept."""

import threading

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe import layout as layouts
from llava_probe.asking.preparation import made_otherwise
from llava_probe.asking.prompts import pose
from llava_probe.layout import asking
from tests import torchvision_half, zoo
from tests.layout.test_places import PLACELESS
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text on the stop sign"
SQUASHED = {"do_center_crop": False, "size": {"height": 48, "width": 48}}


def measured(model=None):
    return lp.VLM(model or random_llava(), llava_processor(), layout="measured")


def failing(error):
    def fail(*_args, **_kwargs):
        raise error

    return fail


def told(trace):
    with pytest.raises(lp.BadInput, match="is not known") as caught:
        lp.attention_map(trace)
    return str(caught.value)


def test_a_failed_measurement_tells_its_reason_and_is_tried_again(monkeypatch, tmp_path):
    vlm = measured()
    with monkeypatch.context() as patched:
        patched.setattr(asking.Asker, "moves", failing(RuntimeError("the tower hiccuped")))
        trace = vlm.generate(photo(), QUESTION, max_new_tokens=1)
        with pytest.raises(lp.BadInput, match=r"not known.*the tower hiccuped"):
            vlm.lay_out(photo())
    assert trace.layouts == ()
    assert "the tower hiccuped" in told(trace)
    trace.save(tmp_path / "run.trace")
    assert "the tower hiccuped" in told(lp.Trace.load(tmp_path / "run.trace"))
    again = vlm.generate(photo(), QUESTION, max_new_tokens=1)
    assert again.layouts == measured().generate(photo(), QUESTION, max_new_tokens=1).layouts != ()
    assert "places" not in again.provenance


@pytest.mark.parametrize(
    "error",
    [
        NameError("a name of ours"),
        TypeError("a call of ours"),
        AttributeError("a field of ours"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: device-side assert triggered"),
    ],
    ids=repr,
)
def test_bugs_and_devices_are_not_taken_for_a_picture_without_places(monkeypatch, error):
    monkeypatch.setattr(asking.Asker, "moves", failing(error))
    with pytest.raises(type(error)) as caught:
        measured().generate(photo(), QUESTION, max_new_tokens=1)
    assert caught.value is error


def test_what_a_model_refuses_by_its_build_is_asked_once(monkeypatch):
    vlm, asked = measured(), []

    def refuse(*_args):
        asked.append(1)
        raise lp.BadModel("its pictures do not enter its decoder")

    monkeypatch.setattr(asking.Asker, "moves", refuse)
    for _ in range(2):
        trace = vlm.generate(photo(), QUESTION, max_new_tokens=1)
        assert "its pictures do not enter its decoder" in told(trace)
    assert len(asked) == 1


def test_a_written_way_that_fails_is_named_and_the_places_are_measured(monkeypatch):
    written = lp.VLM(random_llava(), llava_processor()).generate(photo(), QUESTION, max_new_tokens=1).layouts[0]

    def place(prepared):
        return prepared.model.a_private_function_of_an_older_transformers()

    monkeypatch.setitem(layouts.WAYS, "llava", place)
    with pytest.warns(UserWarning, match=r"place, the written layout of Llava.*a_private_function.*measured instead"):
        trace = lp.VLM(random_llava(), llava_processor()).generate(photo(), QUESTION, max_new_tokens=1)
    assert np.array_equal(trace.layouts[0].positions, written.positions)
    assert np.abs(trace.layouts[0].boxes - written.boxes).max() < 0.15 * 8  # pixels of a patch


def test_measuring_waits_for_a_run_of_the_model_and_a_run_for_it(monkeypatch):
    """Held up in the middle of a measurement, another thread's run must not reach the model."""
    vlm, inside, reached = measured(), threading.Event(), threading.Event()
    really, seen = layouts.measure, []

    def held_up(*args):
        inside.set()
        seen.append(reached.wait(0.5))
        return really(*args)

    monkeypatch.setattr(layouts, "measure", held_up)
    tensors, prompts = vlm.prepare([asked := pose(vlm.processor, photo(), QUESTION)], {})
    found = []
    other = threading.Thread(target=lambda: found.append(vlm.layouts_of([asked], 0, prompts[0], tensors, {})))
    other.start()
    assert inside.wait(10)
    handle = vlm.model.model.language_model.register_forward_pre_hook(lambda *_: reached.set())
    vlm.generate(question="what is red", max_new_tokens=1)
    other.join()
    handle.remove()
    assert seen == [False]
    assert len(found[0].layouts) == 1


# --- ready-made inputs ---


def ready(vlm, image, **settings):
    text = pose(vlm.processor, image, QUESTION).prompt
    return dict(vlm.processor(text=text, images=image, return_tensors="pt", **settings))


def test_inputs_made_with_other_settings_have_no_places_until_these_are_told(random_vlm, tmp_path):
    """The same tensors asked both ways: the boxes of one way are the truth for the other."""
    wide = photo(120, 48)
    truth = random_vlm.generate(wide, QUESTION, max_new_tokens=2, processor_kwargs=SQUASHED)
    assert truth.layouts != random_vlm.generate(wide, QUESTION, max_new_tokens=2).layouts
    inputs = ready(random_vlm, wide, **SQUASHED)
    blind = random_vlm.generate(wide, inputs=inputs, max_new_tokens=2)
    assert torch.equal(blind.logits, truth.logits)
    assert blind.layouts == ()
    blind.save(tmp_path / "run.trace")
    for trace in (blind, lp.Trace.load(tmp_path / "run.trace"), random_vlm.rerun(blind)):
        assert "pixel_values in inputs= is not what LlavaProcessor makes" in told(trace)
    with pytest.raises(lp.BadInput, match="not known: pixel_values in inputs="):
        random_vlm.lay_out(wide, inputs=inputs)
    seeing = random_vlm.generate(wide, inputs=inputs, max_new_tokens=2, processor_kwargs=SQUASHED)
    assert seeing.layouts == truth.layouts == random_vlm.lay_out(wide, inputs=inputs, processor_kwargs=SQUASHED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inputs_as_the_processor_makes_them_have_their_places(random_vlm, dtype):
    wide = photo(120, 48)
    inputs = ready(random_vlm, wide)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    found = random_vlm.generate(wide, inputs=inputs, max_new_tokens=1).layouts
    assert found == random_vlm.generate(wide, QUESTION, max_new_tokens=1).layouts != ()


def test_inputs_are_compared_for_a_processor_without_a_template(random_vlm):
    inputs, other = ready(random_vlm, photo()), ready(random_vlm, photo(), **SQUASHED)
    random_vlm.processor.chat_template = None
    assert random_vlm.generate(photo(), inputs=inputs, max_new_tokens=1).layouts != ()
    assert random_vlm.generate(photo(), inputs=other, max_new_tokens=1).layouts == ()


def test_inputs_of_another_picture_have_no_places(random_vlm):
    trace = random_vlm.generate(photo(seed=1), inputs=ready(random_vlm, photo()), max_new_tokens=1)
    assert "is not what LlavaProcessor makes of these pictures" in told(trace)


@pytest.mark.skipif(not torchvision_half.present(), reason="the processors of most families need torchvision")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name not in PLACELESS])
def test_every_familys_own_inputs_are_known_and_those_of_another_picture_are_not(name):
    vlm = zoo.vlm(name)
    inputs, _ = vlm.model_inputs(photo(150, 90), QUESTION)
    assert made_otherwise(vlm.processor, pose(vlm.processor, photo(150, 90), inputs=inputs), {}) == ""
    assert made_otherwise(vlm.processor, pose(vlm.processor, photo(150, 90, 1), inputs=inputs), {}) != ""
