"""``verify`` finds whatever is not as its run left it, also where the manifest lies with a right hash."""

import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import llava_probe as lp
from llava_probe.features.manifest import manifest_bytes
from llava_probe.features.shards import shard_numbers
from tests.features.written_store import write


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("written") / "features")


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "features")


def lying(change):
    """Change the manifest and give it the hash of what it says now."""

    def of(folder):
        told = json.loads((folder / "manifest.json").read_text())
        change(told)
        (folder / "manifest.json").write_bytes(manifest_bytes(told))

    return of


def without_rows(folder):
    table = pq.read_table(folder / "errors.parquet")
    pq.write_table(table.slice(0, 0), folder / "errors.parquet")


def swapped(folder):
    one, two = (folder / f"shards/0000{number}.safetensors" for number in (0, 3))
    one.rename(folder / "kept"), two.rename(one), (folder / "kept").rename(two)


def another_index(folder):
    table = pq.read_table(folder / "index/00000.parquet")
    pq.write_table(table.set_column(0, "id", pa.array(["x"] * len(table))), folder / "index/00000.parquet")


CHANGES = {
    "interventions of no kind": (
        lying(lambda told: told["settings"].update(interventions=[{"keys": "image"}])),
        "missing required field `kind`",
    ),
    "a shard is left out": (lying(lambda told: (told["shards"].pop(), told.update(rows=8))), "does not know it"),
    "the first shard is left out": (lying(lambda told: told["shards"].pop(0)), "its shards are numbered 1, 2, 3"),
    "no rows in a shard": (lying(lambda told: told["shards"][0].update(rows=0)), "it has 12 rows, its shards 7"),
    "rows of one told of another": (
        lying(lambda told: (told["shards"][0].update(rows=4), told["shards"][2].update(rows=4))),
        "is not what the manifest says",
    ),
    "another batch size": (lying(lambda told: told["shards"][0].update(batch_size=3)), "is not what the manifest says"),
    "no errors": (lying(lambda told: told["shards"][1].update(errors_sha256=None)), "does not know it"),
    "a tensor is left out": (lying(lambda told: told["tensors"].pop("layer_8/last_prompt")), "do not hold"),
    "another shape": (lying(lambda told: told["tensors"]["layer_8/last_prompt"]["shape"].append(1)), "do not hold"),
    "a manifest by hand": (
        lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace("12", "13")
        ),
        "its sha256 is not that of its contents",
    ),
    "errors without their rows": (without_rows, r"errors.parquet is damaged: its checksum"),
    "no errors.parquet": (lambda folder: (folder / "errors.parquet").unlink(), r"errors.parquet is missing"),
    "shards change places": (swapped, r"00000.safetensors is damaged: its checksum"),
    "another index": (another_index, r"00000.parquet is damaged: its checksum"),
    "a file too many": (lambda folder: (folder / "shards/00009.safetensors").touch(), "does not know it"),
    "errors too many": (
        lambda folder: shutil.copy(folder / "errors/00001.parquet", folder / "errors/00000.parquet"),
        "does not know it",
    ),
    "a shard is gone": (lambda folder: (folder / "shards/00003.safetensors").unlink(), "is missing"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_named(folder, name):
    lp.Features(folder).verify()
    change, told = CHANGES[name]
    change(folder)
    with pytest.raises(lp.BadFile, match=told):
        lp.Features(folder).verify()


@pytest.mark.parametrize("change", ["a bit of a tensor", "a row of an index", "shards change places"])
def test_the_same_run_again_makes_a_changed_shard_anew(folder, change):
    bytes_of = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if change == "a bit of a tensor":
        path = folder / "shards/00002.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    elif change == "a row of an index":
        path = folder / "index/00002.parquet"
        table = pq.read_table(path)
        pq.write_table(table.take([1, 0, 2]).replace_schema_metadata(table.schema.metadata), path)
    else:
        swapped(folder)
    write(folder)
    lp.Features(folder).verify()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == bytes_of


@pytest.mark.parametrize("name", ["9" * 200, "٣", "²", "1"])
def test_a_file_of_no_number_of_ours_is_no_shard(folder, name):
    (folder / "index" / f"{name}.parquet").write_text("x")
    with pytest.raises(lp.BadFile, match="does not know it"):
        lp.Features(folder)
    write(folder)  # the gap before such a number was counted out
    assert shard_numbers(folder) == [0, 1, 2, 3]


@pytest.mark.parametrize("place", ["manifest.json", "shards/00000.safetensors", "index/00000.parquet"])
@pytest.mark.parametrize("device", ["pipe", "/dev/zero"])
def test_what_is_no_file_is_refused_at_once(folder, place, device):
    (folder / place).unlink()
    os.mkfifo(folder / place) if device == "pipe" else (folder / place).symlink_to(device)
    with pytest.raises(lp.BadFile, match=f"{place} is no file"):
        lp.Features(folder).verify()


def test_a_flipped_bit_in_a_header_is_one_sentence(folder):
    """Every eighth byte here; its names, shapes and places are held to the manifest and to each other."""
    path = folder / "shards/00003.safetensors"
    good = path.read_bytes()
    for place in range(8, 8 + int.from_bytes(good[:8], "little"), 8):
        data = bytearray(good)
        data[place] ^= 4
        path.write_bytes(data)
        with pytest.raises(lp.BadFile, match=r"00003\.safetensors"):
            lp.Features(folder)["layer_16", "image"].mean()


def test_spans_that_leave_their_values_are_refused(folder):
    header, path = lp.Features(folder)._header(0), folder / "shards/00000.safetensors"
    data = bytearray(path.read_bytes())
    start = header.entries["spans/image"].start
    data[start : start + 8] = (10**6).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(lp.BadFile, match=r"its spans leave the .* values of layer_16/image"):
        lp.Features(folder)["layer_16", "image"]


@pytest.mark.parametrize("row", ["x", 1.0, None, True, torch.tensor([0, 1])])
def test_a_row_is_a_whole_number(folder, row):
    with pytest.raises(lp.BadInput, match="takes a whole number; got"):
        lp.Features(folder)["layer_16", "image"][row]


def test_a_column_is_named_by_a_text(folder):
    with pytest.raises(lp.BadInput, match="takes text; got 3"):
        lp.Features(folder).column(3)
