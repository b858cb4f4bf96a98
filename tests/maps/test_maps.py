"""A map lies on the right pixels of the original photograph, says so in pictures and files, and comes back equal."""

import dataclasses
import io
import json
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import llava_probe as lp
from tests.models import photo
from tests.synthetic import IMAGE_AT, SIZE, P, T, causal, layout, photograph, synthetic_trace


def map_of(values, **changes) -> lp.ImageMap:
    values = torch.as_tensor(values)
    tokens = synthetic_trace().generated[: len(values)]
    fields = {"layout": layout(), "image": photograph(), "tokens": tokens, "method": "attention"}
    return lp.ImageMap(values, **fields | changes)


def one_hot(*numbers) -> torch.Tensor:
    return torch.eye(6)[list(numbers)]


# --- places ---


@pytest.mark.parametrize("number", range(6))
def test_hot_pixels_are_exactly_the_tokens_box(number):
    """All attention on one token of a cropped, non-square photograph."""
    attention = torch.zeros(P + T - 1, 3, 2, P + T - 1)
    attention[..., IMAGE_AT[number]] = 1
    pixels = lp.attention_map(synthetic_trace(attention=attention)).pixels(0)
    x, y = 10 + 10 * (number % 3), 10 * (number // 3)
    expected = np.zeros((20, 50), dtype=np.float32)
    expected[y : y + 10, x : x + 10] = 1
    expected[:, :10] = expected[:, 40:] = np.nan
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.dtype == np.float32


def test_a_map_of_a_model_lies_where_its_processor_looked(random_vlm):
    """A CLIP processor shows the model the middle 48 pixels of a 64 × 48 picture."""
    trace = random_vlm.generate(photo(64, 48), "what is the text", max_new_tokens=2)
    pixels = lp.attention_map(trace, tokens=lp.GENERATED).pixels()
    assert pixels.shape == (48, 64)
    assert np.isnan(pixels[:, :8]).all()
    assert np.isnan(pixels[:, -8:]).all()
    assert np.isfinite(pixels[:, 8:-8]).all()
    blocks = pixels[:, 8:-8].reshape(6, 8, 6, 8)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :1, :, :1], blocks.shape))


def test_rows_count_from_either_end_and_none_is_their_mean():
    m = map_of(torch.arange(12.0).reshape(2, 6))
    np.testing.assert_array_equal(m.pixels(-1), m.pixels(1))
    np.testing.assert_allclose(m.pixels(), (m.pixels(0) + m.pixels(1)) / 2)
    for row in (2, -3):
        with pytest.raises(lp.OutOfRange, match="rows 0 to 1"):
            m.pixels(row)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=6, max_size=6))
def test_pixels_and_tokens_say_the_same(values):
    m = map_of([values])
    np.testing.assert_allclose(m.layout.to_tokens(m.pixels(0)), values, rtol=1e-5, atol=1e-5)
    assert m.grid(0).tolist() == m.values.reshape(2, 3).tolist()


def test_peak_is_the_centre_of_the_top_tokens_box():
    assert map_of(one_hot(4)).peak(0) == (25, 15)
    assert map_of(one_hot(0)).peak() == (15, 5)
    assert map_of(one_hot(0) + one_hot(5)).peak(0) == (25, 10)  # two tie: between them
    assert map_of(torch.zeros(1, 6)).peak(0) == (25, 10)


def test_tokens_without_one_grid_have_none():
    m = map_of(one_hot(0), layout=dataclasses.replace(layout(), grid=None))
    with pytest.raises(lp.BadInput, match="no single grid"):
        m.grid(0)


# --- what does not fit ---


def test_wrong_values_are_refused():
    with pytest.raises(lp.BadInput, match=r"takes values \[2, 6\]; got \[2, 5\]"):
        map_of(torch.zeros(2, 5))
    with pytest.raises(lp.BadInput, match="pixels"):
        map_of(one_hot(0), image=photo(30, 20))
    for wrong in (torch.nan, torch.inf):
        values = torch.zeros(3, 6)
        values[1, 2] = wrong
        with pytest.raises(lp.NotANumber, match=r"row 1 \('OP'\)"):
            map_of(values)


def test_values_are_kept_as_plain_float32():
    m = map_of(torch.ones(1, 6, dtype=torch.float64, requires_grad=True), marked=[True] + [False] * 5)
    assert (m.values.dtype, m.values.requires_grad) == (torch.float32, False)
    assert m.marked.shape == (1, 6)


# --- pictures ---


def test_an_overlay_leaves_the_photograph_readable_and_hatches_the_unseen():
    m = map_of(one_hot(4))
    over = np.asarray(m.overlay(0)).astype(float)
    assert m.overlay(0).size == SIZE
    assert m.overlay(0).mode == "RGB"
    light = np.asarray(m.image.convert("L")).astype(float)

    def follows(region):
        return np.corrcoef(over[region].mean(-1).ravel(), light[region].ravel())[0, 1]

    assert follows(np.s_[:10, 10:40]) > 0.85  # on noise, where the map is zero
    assert follows(np.s_[10:, 20:30]) > 0.85  # and under its largest value
    assert np.ptp(over[:10, 10:40], axis=-1).max() <= 1, "nothing leaves the photograph grey"
    assert np.ptp(over[10:, 20:30], axis=-1).min() > 40, "the largest value does not"
    unseen = over[:, :10]
    assert (unseen.max(-1) == unseen.min(-1)).all()  # grey: no value, no colour of the photograph
    assert unseen.std() > 20  # and striped


def test_an_overlay_has_no_colour_between_boxes():
    """On an even photograph each box has one colour: nothing is smoothed."""
    m = map_of([[0.0, 1, 2, 3, 4, 5]], image=Image.new("RGB", SIZE, (128, 128, 128)))
    boxes = np.asarray(m.overlay(0))[:, 10:40].reshape(2, 10, 3, 10, 3)
    assert (boxes == boxes[:, :1, :, :1]).all()
    assert len({tuple(colour) for colour in boxes[:, 0, :, 0].reshape(6, 3).tolist()}) == 6


def test_overlays_compare_under_one_scale():
    weak, strong = map_of(0.5 * one_hot(1)), map_of(one_hot(1))
    np.testing.assert_array_equal(weak.overlay(0), strong.overlay(0))
    assert not np.array_equal(weak.overlay(0, highest=1), strong.overlay(0, highest=1))


def test_signs_have_different_colours():
    over = np.asarray(map_of(one_hot(0) - one_hot(5)).overlay(0)).astype(int)
    above, below = over[5, 15], over[15, 35]
    assert above[0] > above[2]  # red for
    assert below[0] < below[2]  # blue against


def test_rows_of_one_map_share_its_colours():
    """The row without a value below 0 too: red is what is above 0 in each."""
    m = map_of(torch.stack([one_hot(0)[0] - one_hot(5)[0], one_hot(0)[0]]))
    mixed, positive = (np.asarray(m.overlay(row)) for row in (0, 1))
    np.testing.assert_array_equal(mixed[5, 15], positive[5, 15])
    alone = np.asarray(map_of(one_hot(0)).overlay(0))
    assert not np.array_equal(positive[5, 15], alone[5, 15]), "a map without negatives has the colours of heat"


# --- files ---


def test_saving_writes_pictures_and_everything_to_plot_again(tmp_path):
    trace = synthetic_trace(attention=causal(), answer=[" ST", "OP", "/../x\n", "</s>"])
    m = lp.attention_map(trace, tokens=lp.GENERATED)
    m = dataclasses.replace(m, marked=torch.tensor([True] + [False] * 5))
    paths = m.save(tmp_path / "maps")
    names = ["000_ST.png", "001_OP.png", "002_x.png", "003_s.png", "map.npz"]
    assert [path.name for path in paths] == names
    assert all(path.exists() for path in paths)
    np.testing.assert_array_equal(np.asarray(Image.open(paths[1])), np.asarray(m.overlay(1)))

    with np.load(paths[-1], allow_pickle=False) as held:
        np.testing.assert_array_equal(held["values"], m.values)
        np.testing.assert_array_equal(held["boxes"], m.layout.boxes)
        np.testing.assert_array_equal(held["positions"], m.layout.positions)
        np.testing.assert_array_equal(held["seen"], m.layout.seen)
        np.testing.assert_array_equal(Image.open(io.BytesIO(held["image"].tobytes())), np.asarray(m.image))
        assert (held["image"].dtype, held["image"].ndim) == (np.uint8, 1)
        assert held["texts"].tolist() == [token.text for token in m.tokens]
        assert held["token_positions"].tolist() == [token.position for token in m.tokens]
        assert json.loads(str(held["told"]))["method"] == "attention"

    again = lp.ImageMap.load(tmp_path / "maps")
    assert torch.equal(again.values, m.values)
    assert torch.equal(again.marked, m.marked)
    assert again.layout == m.layout
    assert again.tokens == m.tokens
    assert again.about == m.about
    np.testing.assert_array_equal(again.overlay(2), m.overlay(2))


def test_a_second_map_replaces_the_overlays_of_the_first_and_nothing_else(tmp_path):
    for mine in ("holiday.png", "007_bond.png", "notes.txt"):
        (tmp_path / mine).write_text("mine")
    first, second = (
        lp.attention_map(synthetic_trace(attention=causal(size=size), answer=answer), tokens=lp.GENERATED)
        for size, answer in ((13, [" ST", "OP", " sign", "</s>"]), (11, [" co", "</s>"]))
    )
    first.save(tmp_path)
    written = second.save(tmp_path)
    assert {path.name for path in written} == {"000_co.png", "001_s.png", "map.npz"}
    kept = {path.name for path in tmp_path.iterdir()} - {path.name for path in written}
    assert kept == {"holiday.png", "007_bond.png", "notes.txt"}


def test_a_folder_with_a_foreign_map_file_is_not_cleared(tmp_path):
    np.savez(tmp_path / "map.npz", values=np.zeros(3))
    (tmp_path / "000_co.png").write_text("mine")
    map_of(one_hot(0)).save(tmp_path)
    assert (tmp_path / "000_co.png").read_text() == "mine"


def test_overlays_are_jpeg_only_where_the_photograph_was_shrunken(tmp_path):
    m = map_of(one_hot(0, 4))
    near = []
    for side, suffix in ((max(SIZE), ".png"), (max(SIZE) - 1, ".jpg"), (None, ".png")):
        *overlays, held = m.save(tmp_path, side)
        assert {path.name for path in tmp_path.iterdir()} == {path.name for path in [*overlays, held]}
        assert {path.suffix for path in overlays} == {suffix}
        shown, true = (np.asarray(each).ravel() for each in (Image.open(overlays[1]), m.overlay(1, side=side)))
        near.append(1 if np.array_equal(shown, true) else np.corrcoef(shown, true)[0, 1])
        again = lp.ImageMap.load(held)
        assert torch.equal(again.values, m.values)
        assert again.layout == m.layout
        assert max(again.image.size) == min(max(SIZE), side or max(SIZE))
    assert near[0] == near[2] == 1
    assert 0.9 < near[1] < 1, "colours and hatching are those of the overlay"


def test_a_photograph_in_a_map_is_opened_as_guardedly_as_any(tmp_path):
    *_, path = map_of(one_hot(0)).save(tmp_path)
    with np.load(path) as held:
        arrays = dict(held)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    np.savez(path, **arrays | {"image": np.frombuffer(eps, np.uint8)})
    with pytest.raises(lp.BadFile, match="is not PNG, JPEG, WEBP"):
        lp.ImageMap.load(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_kill_leaves_the_old_map_or_the_new_one(tmp_path):
    maps = [map_of(one_hot(0, 1)), map_of(one_hot(2, 3, 4))]
    maps[0].save(tmp_path)
    for wait in (0.005, 0.02, 0.05, 0.08, 0.11):
        child = os.fork()
        if child == 0:
            while True:
                for m in maps[::-1]:
                    m.save(tmp_path)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = lp.ImageMap.load(tmp_path)
        assert any(torch.equal(found.values, m.values) for m in maps)
    written = maps[1].save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}, "no leftovers"


def test_saving_that_takes_long_shows_its_progress(tmp_path, capsys, monkeypatch):
    map_of(one_hot(0, 1)).save(tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("llava_probe.maps.maps._PATIENCE", 0)
    map_of(one_hot(0, 1)).save(tmp_path)
    assert capsys.readouterr().err == "", "a bar is for a terminal"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    map_of(one_hot(0, 1)).save(tmp_path)
    told = capsys.readouterr()
    assert "/2" in told.err
    assert told.out == ""


def test_what_cannot_be_read_or_written(tmp_path):
    (tmp_path / "map.npz").write_bytes(b"no map")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(lp.BadFile, match="no map of llava_probe"):
        lp.ImageMap.load(tmp_path)
    with pytest.raises(lp.BadFile):
        lp.ImageMap.load(tmp_path / "nothing.npz")
    with pytest.raises(lp.BadFile, match="cannot be made"):
        map_of(one_hot(0)).save(tmp_path / "file" / "maps")


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({"contrast": 5}, "its contrast is no list of 2 words"),
        ({"contrast": ["stop"]}, "its contrast is no list of 2 words"),
        ({"positions": 5}, "its positions are no list of 2 lists of positions"),
        ({"positions": [["a"], ["a"]]}, "its positions are no list"),
        ({"positions": [[3]]}, "its positions are no list"),
        ({"positions": [3, 4]}, "its positions are no list"),
        ({"unit": 5}, "its unit is 5, no text"),
    ],
)
def test_what_a_map_tells_of_itself_is_in_its_form(about, sentence):
    with pytest.raises(lp.BadInput, match=sentence):
        map_of(one_hot(1, 2), about=about)


def test_words_are_read_by_the_positions_a_map_tells():
    m = map_of(one_hot(1, 2), about={"positions": [[3], (4, 5)], "contrast": ["go", None]})
    assert m.starts(1) == {4 - (m.tokens[1].role == "generated"), 5 - (m.tokens[1].role == "generated")}
    assert m.label(0).endswith("rather than go")
