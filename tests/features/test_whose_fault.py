"""A sample's own fault is a row of errors; a bug or a lost device ends the run as it is, its samples told."""

import io
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import llava_probe as lp
from llava_probe import tiny
from llava_probe.features import extract, extractor
from llava_probe.features.engines import Cluster, _waves, _Worker
from llava_probe.features.extractor import Recipe
from llava_probe.features.gathering import _stored
from llava_probe.features.samples import read_samples
from tests.models import llava_processor, random_llava

ASKED = {"layers": [2], "positions": ["last_prompt"], "batch_size": 2}


@pytest.fixture(scope="module")
def vlm():
    return lp.VLM(random_llava(), llava_processor())


@pytest.fixture
def rows():
    return [{"id": f"s{n}", "image": tiny.scene(n).image, "question": "What colour is the sign?"} for n in range(6)]


class Unsendable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


BUGS = [NameError, TypeError, AttributeError, KeyError]


def over(sample_id, error, function):
    """``function`` as it is, but for batches with that sample."""

    def failing(*args, **kwargs):
        found = function(*args, **kwargs)
        samples = getattr(found, "samples", ()) or getattr(args[2] if len(args) > 2 else None, "samples", ())
        if any(sample.id == sample_id for sample in samples):
            raise error
        return found

    return failing


@pytest.mark.parametrize("where", ["batch_of", "read", "gather"])
@pytest.mark.parametrize("kind", BUGS)
def test_a_bug_ends_the_run_as_it_is_and_names_the_samples(vlm, rows, tmp_path, monkeypatch, where, kind):
    error = kind("a bug")
    monkeypatch.setattr(extractor, where, over("s3", error, getattr(extractor, where)))
    with pytest.raises(kind) as caught:
        lp.extract(vlm, rows, tmp_path / "f", **ASKED)
    assert caught.value is error
    (note,) = [note for note in error.__notes__ if "took the features of sample" in note]
    assert "s3" in note
    assert "s0" not in note
    assert not lp.Features(tmp_path / "f").complete


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), torch.AcceleratorError("lost")], ids=repr
)
def test_a_lost_device_ends_the_run(vlm, rows, tmp_path, monkeypatch, error):
    monkeypatch.setattr(extractor, "read", over("s3", error, extractor.read))
    with pytest.raises(RuntimeError) as caught:
        lp.extract(vlm, rows, tmp_path / "f", **ASKED)
    assert caught.value is error


@pytest.mark.parametrize("kind", [*BUGS, IndexError, RuntimeError, ValueError, OSError])
def test_whatever_a_processor_raises_is_its_samples_fault(rows, tmp_path, monkeypatch, kind):
    vlm, error = lp.VLM(random_llava(), llava_processor()), kind("a picture I cannot take")
    kind, bad = type(vlm.processor), np.asarray(rows[3]["image"])

    class Picky(kind):
        def __call__(self, images=None, **kwargs):
            flat = [one for many in images or () for one in (many if isinstance(many, list) else [many])]
            if any(np.array_equal(np.asarray(one), bad) for one in flat):
                raise error
            return super().__call__(images=images, **kwargs)

    monkeypatch.setattr(vlm.processor, "__class__", Picky)
    found = lp.extract(vlm, rows, tmp_path / "f", **ASKED)
    assert found.column("id") == ["s0", "s1", "s2", "s4", "s5"]
    assert found.errors()["id"].to_pylist() == ["s3"]
    assert str(error) in found.errors()["reason"][0].as_py()


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, OSError, torch.OutOfMemoryError])
def test_what_the_model_refuses_of_a_sample_is_a_row(vlm, rows, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(extractor, "read", over("s3", kind("no"), extractor.read))
    found = lp.extract(vlm, rows, tmp_path / "f", **ASKED)
    assert found.errors()["id"].to_pylist() == ["s3"]


def answered(rows, folder, monkeypatch, error):
    """What a worker of a cluster answers where features fail so, as its driver reads it."""
    monkeypatch.setattr(extractor, "read", over("s1", error, extractor.read))
    worker = _Worker(("tiny", {}), Recipe((2,), ("last_prompt",)), str(folder), False, Cluster())
    (wave,) = _waves([(0, list(read_samples(rows)))])
    return pickle.loads(worker({name: [value] for name, value in wave[0].items()})["error"][0])


@pytest.mark.parametrize("kind", BUGS)
def test_a_bug_in_a_worker_reaches_the_driver_as_it_is(rows, tmp_path, monkeypatch, kind):
    told = answered(rows, tmp_path, monkeypatch, kind("a bug"))
    assert (type(told), told.args) == (kind, ("a bug",))
    assert any("sample" in note and "s1" in note for note in told.__notes__)
    assert any("Traceback" in note for note in told.__notes__)


def test_an_error_that_cannot_be_sent_is_told_in_words(rows, tmp_path, monkeypatch):
    told = answered(rows, tmp_path, monkeypatch, Unsendable("this", "that"))
    assert isinstance(told, lp.BadInput)
    assert "a worker failed: Unsendable: this and that" in str(told)
    assert any("Traceback" in note for note in told.__notes__)


def test_a_mask_cut_off_in_the_middle_is_a_row(vlm, rows, tmp_path):
    data = io.BytesIO()
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(data, format="PNG")
    whole = np.ones((336, 336), dtype=bool)
    masks = [whole, data.getvalue()[:70], whole]
    masked = [{**row, "mask": mask} for row, mask in zip(rows, masks, strict=False)]
    found = lp.extract(vlm, masked, tmp_path / "f", layers=[2], positions=["image_in_mask_mean"])
    assert found.errors()["id"].to_pylist() == ["s1"]
    assert "mask" in found.errors()["reason"][0].as_py()


def test_the_free_space_that_is_told_is_that_of_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = []
    usage = shutil.disk_usage
    monkeypatch.setattr(extract.shutil, "disk_usage", lambda folder: asked.append(folder) or usage(folder))
    extract._told(SimpleNamespace(name="rows", count=3), "~/features/new", 100, 10)
    assert asked == [tmp_path]


def test_what_a_precision_cannot_hold_is_told_and_not_stored():
    with pytest.raises(lp.NotANumber, match="layer_3 is beyond what float16 holds; store_dtype='bfloat16' holds it"):
        _stored(torch.tensor([7e4], dtype=torch.bfloat16), torch.float16, "layer_3/last_prompt")
    with pytest.raises(lp.NotANumber, match="vision_2 holds NaN or infinity"):
        _stored(torch.tensor([1.0, torch.nan]), torch.float32, "vision_2")
