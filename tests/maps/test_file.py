"""A crafted map is refused in a sentence, and unpacks nothing of unknown size."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe.trace.tokens import Token
from tests.synthetic import layout, photograph


@pytest.fixture
def crafted(tmp_path):
    """Saves a good map with other arrays; a dict changes its description."""
    m = lp.ImageMap(torch.rand(1, 6), layout(), photograph(), (Token(6, " ST", "generated", 10),), "attention")
    path = m.save(tmp_path)[-1]
    with np.load(path) as held:
        arrays = dict(held)

    def changed(**changes):
        told = json.loads(str(arrays["told"])) | changes.pop("told", {})
        plain = {name: value for name, value in told.items() if value is not ...}
        made = {**arrays, "told": np.array(json.dumps(plain)), **changes}
        np.savez(path, **{name: array for name, array in made.items() if array is not None})
        return path

    return changed


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"values": None}, "'values' is missing"),
        ({"values": np.zeros((2, 2), np.int64)}, r"'values' is int64 \[2, 2\]; expected floats \[1, 6\]"),
        ({"values": np.full((1, 6), np.nan)}, "not all finite numbers"),
        ({"values": np.array([[object()] * 6])}, "has other bytes than object"),
        ({"image": np.zeros((20, 50), np.uint8)}, r"'image' is uint8 \[20, 50\]"),
        ({"image": np.zeros(9, np.uint8)}, "the photograph of"),
        ({"values": np.zeros((1, 6), np.longdouble)}, "is no map of llava_probe: can't convert"),
        ({"size": np.array([10**6, 10**6])}, "larger than any that is opened"),
        ({"size": np.array([-1, 20])}, "`int` >= 1"),
        ({"boxes": np.full((6, 4), np.inf)}, "the boxes of its picture are no places"),
        ({"positions": np.full(6, -2)}, "values at negative positions"),
        ({"told": {"tokens": ...}}, "missing required field `tokens`"),
        ({"told": {"grid": [3, 3]}}, r"the grid \[3, 3\] of its picture is none of 6"),
        ({"told": {"about": {"contrast": 3}}}, "its contrast is no list of 1 words"),
        ({"told": {"about": {"positions": 5}}}, "its positions are no list of 1 lists of positions"),
        ({"told": {"about": {"positions": [["a"]]}}}, "its positions are no list of 1 lists"),
        ({"told": {"about": {"positions": [[3], [4]]}}}, "its positions are no list of 1 lists"),
        ({"told": {"text_tokens": [{"id": 1}]}}, r"at `\$.text_tokens\[0\]`"),
        ({"more": np.zeros(1)}, "nothing is known of its tensor 'more'"),
    ],
)
def test_a_crafted_map_is_refused(crafted, changes, sentence):
    path = crafted(**changes)
    with pytest.raises(lp.BadFile, match=sentence) as told:
        lp.ImageMap.load(path)
    assert "\n" not in str(told.value)


def test_a_good_one_is_still_read(crafted):
    assert lp.ImageMap.load(crafted()).values.shape == (1, 6)


@pytest.mark.parametrize("positions", [[-1] * 6, [3, 3, 3, 4, 4, 4]])
def test_cells_of_pixels_come_back_without_a_token_of_their_own(crafted, positions):
    assert lp.ImageMap.load(crafted(positions=np.array(positions))).layout.positions.tolist() == positions


def test_a_kilobyte_that_unpacks_to_a_gigabyte_is_not_unpacked(crafted):
    path = crafted(image=None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as packed, packed.open("image.npy", "w") as member:
        for _ in range(400):
            member.write(bytes(1_000_000))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(lp.BadFile, match=r"unpacks to 400,000,000 bytes"):
        lp.ImageMap.load(path)


def test_a_device_is_no_map(tmp_path):
    (tmp_path / "map.npz").symlink_to("/dev/zero")
    with pytest.raises(lp.BadFile, match="is a device"):
        lp.ImageMap.load(tmp_path)


def test_many_members_are_not_unpacked(crafted, monkeypatch):
    monkeypatch.setattr("llava_probe.maps.file._HELD", 5_000)
    monkeypatch.setattr("llava_probe.maps.file._RATIO", 1)
    packed = {"values": np.zeros((1, 6)), "text": np.zeros((1, 999)), "marked": np.zeros((1, 9999), bool)}
    with pytest.raises(lp.BadFile, match=r"unpacks to [0-9,]+ bytes, more than are read"):
        lp.ImageMap.load(packed_small(crafted(**packed)))


def packed_small(path):
    """The same members, compressed as far as they can be."""
    with np.load(path) as held:
        arrays = {name: array for name, array in held.items() if name != "image"}
    np.savez_compressed(path, **arrays)
    return path
