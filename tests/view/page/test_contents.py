"""What goes into a page comes out of it: a reader of the parcel written here, apart from the component."""

import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import llava_probe as lp
from llava_probe import tiny
from llava_probe.view.page import payload
from llava_probe.view.page.limits import LIMITS, UNKNOWN, limit_of
from llava_probe.view.page.packing import Parcel, quantise
from tests import zoo
from tests.models import photo

TYPES = {"u8": "<u1", "u16": "<u2", "i32": "<i4", "f32": "<f4"}


class Read:
    """A parcel, unpacked."""

    def __init__(self, parcel):
        first, later = struct.unpack_from("<II", parcel)
        self.parts = [self.inflated(parcel[8 : 8 + first]), self.inflated(parcel[8 + first : 8 + first + later])]
        (length,) = struct.unpack_from("<I", self.parts[0])
        self.header = json.loads(self.parts[0][4 : 4 + length])
        self.starts = (4 + length, 0)

    @staticmethod
    def inflated(data):
        return zlib.decompress(data, -zlib.MAX_WBITS)

    def array(self, ref):
        count = int(np.prod(ref["shape"]))
        place = self.starts[ref["part"]] + ref["at"]
        return np.frombuffer(self.parts[ref["part"]], TYPES[ref["kind"]], count, place).reshape(ref["shape"])

    def maps(self, ref):
        steps, scale = self.array(ref["steps"]).astype(np.float64), self.array(ref["scale"])
        highest = 255 if ref["steps"]["kind"] == "u8" else 65535
        middle = highest // 2 if ref["signed"] else 0
        return (steps - middle) / (highest // 2 if ref["signed"] else highest) * scale[..., None]


@settings(deadline=None)
@given(arrays(np.float32, (3, 5), elements=st.floats(-1e6, 1e6, width=32)), st.sampled_from([np.uint8, np.uint16]))
def test_a_value_comes_back_within_half_a_step(values, kind):
    parcel = Parcel()
    read = Read(parcel.packed({"maps": parcel.quantised(values, kind)}))
    highest = np.iinfo(kind).max
    step = np.abs(values).max(-1, keepdims=True) / (highest // 2 if (values < 0).any() else highest)
    assert (np.abs(read.maps(read.header["maps"]) - values) <= 0.5001 * step + 1e-30).all()


def test_the_largest_value_is_the_last_step():
    steps, scale = quantise(np.array([[0.0, 0.25, 0.5]], np.float32), np.uint8)
    assert steps.tolist() == [[0, 128, 255]] and scale.tolist() == [0.5]


@pytest.fixture(scope="module")
def trace(tiny_vlm):
    return tiny_vlm.generate(tiny.scene(34).image, "What is the text on the stop sign?")


def test_everything_of_a_small_trace_is_there(trace):
    read = Read(payload(trace))
    (run,) = read.header["runs"]
    attention = run["attention"]
    rows = trace.attention[..., trace.layouts[0].positions].numpy()  # [T, L, H, N]
    (own,) = attention["pictures"]
    assert attention["reduced"] == ""
    assert np.abs(read.maps(own["mean"]) - rows.mean((1, 2))).max() <= rows.mean((1, 2)).max() / 130_000
    layers = read.maps(own["layers"])  # [L, T, N]
    assert np.abs(layers - rows.mean(2).swapaxes(0, 1)).max() <= rows.mean(2).max() / 500
    heads = read.maps(own["heads"]).reshape(*rows.shape[1:3], *rows.shape[::3])  # [L, H, T, N]
    assert np.abs(heads - rows.transpose(1, 2, 0, 3)).max() <= rows.max() / 500
    assert np.allclose(read.maps(own["shares"]), rows.sum(-1), atol=1e-5)
    sure = lp.confidence(trace)
    assert np.allclose(read.array(run["steps"]["probability"]), sure.probability)
    assert np.allclose(read.array(run["steps"]["entropy"]), sure.entropy)
    assert run["answer"] == "STOP" and run["said"] == trace.positions(lp.ANSWER)


def test_what_does_not_fit_is_left_out_by_share_and_told(trace):
    for budget in range(20_000, 120_000, 4_000):
        read = Read(payload(trace, budget=budget))
        attention = read.header["runs"][0]["attention"]
        own = attention["pictures"][0]
        kept = own["heads"]["kept"]
        if kept and own["ofHeads"]:
            break
    shares = trace.attention[..., trace.layouts[0].positions].sum(-1).mean(0)  # [L, H]
    by_share = shares.flatten().argsort(descending=True)[: len(kept)].tolist()
    assert 0 < len(kept) < shares.numel()
    assert sorted(layer * shares.shape[1] + head for layer, head in kept) == sorted(by_share)
    assert f"{len(kept)} of {shares.numel()} heads" in attention["reduced"]
    mean = trace.attention[..., trace.layouts[0].positions].mean(0).numpy()
    assert np.abs(read.maps(own["ofHeads"]) - mean).max() <= mean.max() / 500


def test_a_page_of_many_photographs_keeps_to_its_size(trace):
    noise = np.random.default_rng(0)
    layout = replace(
        trace.layouts[0], size=(1400, 1000), boxes=trace.layouts[0].boxes * np.tile([1400 / 336, 1000 / 336], 2)
    )
    photographs = [Image.fromarray(noise.integers(0, 255, (1000, 1400, 3), np.uint8)) for _ in range(6)]
    runs = [replace(trace, images=(each,), layouts=(layout,)) for each in photographs]
    assert len(payload(runs, budget=2_000_000)) < 2_300_000


def test_a_map_goes_to_the_trace_that_says_its_words(tiny_vlm, trace):
    other = tiny_vlm.generate(tiny.scene(36).image, "What is the text on the stop sign?")
    assert other.layouts == trace.layouts
    runs = Read(payload([trace, other, lp.attribute(tiny_vlm, trace)])).header["runs"]
    assert [len(run["maps"]) for run in runs] == [1, 0]


def test_pictures_of_two_runs_are_one_file(trace):
    once, twice = Read(payload(trace)), Read(payload([trace, trace]))
    assert len(twice.parts[0]) < 1.5 * len(once.parts[0])
    assert len({run["pictures"][0]["file"]["at"] for run in twice.header["runs"]}) == 1


def test_a_trace_without_attention_or_logits_is_shown_all_the_same(tiny_vlm, trace):
    bare = tiny_vlm.rerun(trace, capture=lp.Capture(attention=False, logits=False, scores=False))
    (run,) = Read(payload(bare)).header["runs"]
    assert run["attention"] is None and run["steps"] is None and run["answer"] == "STOP"


def test_attention_that_is_no_number_is_not_drawn(trace):
    broken = replace(trace, records={**trace.records, "attention": torch.full_like(trace.attention, torch.nan)})
    assert "NaN" in Read(payload(broken)).header["runs"][0]["attention"]["refused"]


def test_tiles_frames_and_unknown_places_have_a_page():
    tiled = zoo.vlm("llava_next").generate(photo(), "What is this?", max_new_tokens=2)
    layout = Read(payload(tiled)).header["runs"][0]["pictures"][0]["layout"]
    assert len(layout["grids"]) == len(np.unique(tiled.layouts[0].tiles))
    blind = zoo.vlm("blip-2").generate(photo(), "What is this?", max_new_tokens=2)
    (run,) = Read(payload(blind)).header["runs"]
    assert run["pictures"][0]["layout"] is None and run["attention"] is None and "places" in run["notes"][-1]


def test_maps_follow_their_trace_and_stand_alone_without_one(tiny_vlm, trace):
    m = lp.attribute(tiny_vlm, trace)
    runs = Read(payload([m, trace, m])).header["runs"]
    assert [len(run["maps"]) for run in runs] == [1, 1]
    assert [run["attention"] is None for run in runs] == [True, False]
    assert runs[1]["maps"][0]["rows"] == [["STOP", trace.positions(lp.ANSWER)]]


@pytest.mark.parametrize("given", [[], ["run.trace"], 3, None], ids=["none", "path", "number", "None"])
def test_what_is_no_result_is_refused(given, tmp_path):
    with pytest.raises(lp.BadInput, match=r"traces and maps|results="):
        lp.page(given, tmp_path / "page.html")
    assert not any(tmp_path.iterdir())


def test_a_trace_is_not_written_over_by_a_page(trace, tmp_path):
    path = trace.save(tmp_path / "run.trace")
    with pytest.raises(lp.BadInput, match="html"):
        trace.page(path)
    assert lp.Trace.load(path) == trace


def test_every_method_has_its_limit():
    assert {name for name in lp.METHODS if limit_of(name) == UNKNOWN} == set()
    assert all(len(line) <= 160 for line in LIMITS.values())
