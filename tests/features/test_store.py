"""A store is written whole or not at all, and the same run leaves the same bytes."""

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import llava_probe as lp
from llava_probe.features import store
from llava_probe.features.drafts import Drafts

SETTINGS = {"layers": [8, 16], "positions": ("last_prompt", "image"), "model": {"name": "m", "dtype": "bfloat16"}}


def tensors(rows=4, seed=0):
    """Two layers at one position, one ragged position whose rows 0 and 1 share a picture."""
    made = torch.Generator().manual_seed(seed)
    spans = torch.tensor([[0, 3], [0, 3], [3, 5], [5, 5]])[:rows]
    return {
        "layer_16/last_prompt": torch.randn(rows, 6, generator=made).bfloat16(),
        "layer_8/last_prompt": torch.randn(rows, 6, generator=made).bfloat16(),
        "layer_16/image": torch.randn(5, 6, generator=made).half(),
        "spans/image": spans,
        "positions/image": torch.arange(5, dtype=torch.int32),
        "image_attention/last_prompt": torch.rand(rows, 2, 3, generator=made),
    }


def rows(count=4, start=0):
    return [{"id": f"s{start + place}", "label": place % 2, "meta": {"size": [4, 3]}} for place in range(count)]


def filled(folder, shards=2):
    store.begin(folder, SETTINGS)
    for number in range(shards):
        failed = [{"id": "bad", "error": "no picture"}] if number == 1 else []
        store.write_shard(folder, number, tensors(seed=number), rows(start=4 * number), failed)
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_safetensors_reads_what_was_written(tmp_path):
    filled(tmp_path / "features")
    for number in range(2):
        back = load_file(tmp_path / f"features/shards/0000{number}.safetensors")
        expected = tensors(seed=number)
        assert back.keys() == expected.keys()
        assert all(
            torch.equal(back[name], expected[name]) and back[name].dtype == expected[name].dtype for name in back
        )


def test_views_of_one_tensor_are_written_as_they_look(tmp_path):
    hidden = torch.randn(4, 3, 6)
    store.begin(tmp_path, {})
    store.write_shard(tmp_path, 0, {"layer_0/last": hidden[:, 0], "layer_1/last": hidden[:, 1].T.T}, rows())
    back = load_file(tmp_path / "shards/00000.safetensors")
    assert torch.equal(back["layer_0/last"], hidden[:, 0])
    assert torch.equal(back["layer_1/last"], hidden[:, 1])


def test_the_index_is_plain_parquet(tmp_path):
    table = pq.read_table(filled(tmp_path / "features") / "index/00001.parquet").to_pylist()
    assert table[2] == {"id": "s6", "label": 0, "meta": {"size": [4, 3]}, "shard": 1, "shard_row": 2}


def test_the_manifest_tells_checksums_and_shapes(tmp_path):
    folder = filled(tmp_path / "features")
    assert json.loads((folder / "manifest.json").read_text())["complete"] is False
    store.finish(folder)
    told = json.loads((folder / "manifest.json").read_text())
    assert (told["complete"], told["rows"], [shard["rows"] for shard in told["shards"]]) == (True, 8, [4, 4])
    for shard in told["shards"]:
        for kind, name in (("tensors", "shards/0000{}.safetensors"), ("index", "index/0000{}.parquet")):
            data = (folder / name.format(shard["number"])).read_bytes()
            assert shard[f"{kind}_sha256"] == hashlib.sha256(data).hexdigest()
    assert told["tensors"]["layer_16/image"] == {"dtype": "float16", "shape": [None, 6], "ragged": True}
    assert told["tensors"]["image_attention/last_prompt"]["shape"] == [None, 2, 3]
    assert told["settings"]["positions"] == ["last_prompt", "image"]


def test_errors_are_gathered_at_the_end(tmp_path):
    folder = filled(tmp_path / "features")
    assert not (folder / "errors/00000.parquet").exists()
    store.finish(folder)
    assert pq.read_table(folder / "errors.parquet").to_pylist() == [{"id": "bad", "error": "no picture", "shard": 1}]


def test_without_errors_there_is_an_empty_table(tmp_path):
    folder = filled(tmp_path / "features", shards=1)
    store.finish(folder)
    assert pq.read_table(folder / "errors.parquet").num_rows == 0


def test_a_shard_whose_every_sample_failed_is_whole(tmp_path):
    folder = filled(tmp_path / "features")
    store.write_shard(folder, 2, {}, [], [{"id": "bad", "error": "no picture"}])
    store.finish(folder)
    assert load_file(folder / "shards/00002.safetensors") == {}
    assert pq.read_table(folder / "index/00002.parquet").num_rows == 0
    assert set(store.begin(folder, SETTINGS)) == {0, 1, 2}


def test_the_same_run_gives_the_same_bytes(tmp_path):
    one, other = filled(tmp_path / "one"), filled(tmp_path / "other")
    store.finish(one)
    (other / ".manifest.json.0123456789abcdef0123456789abcdef.part").mkdir()  # a kill in finish
    (other / ".manifest.json.0123456789abcdef0123456789abcdef.part" / "manifest.json").write_bytes(b"half")
    (other / ".errors.parquet.0123456789abcdef0123456789abcdef.part").write_bytes(b"half")
    (other / "errors.parquet").write_bytes(b"")
    assert set(store.begin(other, SETTINGS)) == {0, 1}
    store.finish(other)
    assert contents(one) == contents(other)
    store.finish(other)
    assert contents(one) == contents(other)
    assert str(tmp_path).encode() not in b"".join(contents(one).values())


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    code = (
        "import sys, os, signal, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "from tests.features import test_store as t\n"
        "t.filled(sys.argv[1], 1)\n"
        "real = pathlib.Path.replace\n"
        "def killing(self, target):\n"
        "    if target.parent.name == 'index': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, target)\n"
        "pathlib.Path.replace = killing\n"
        "t.store.write_shard(sys.argv[1], 1, t.tensors(seed=9), t.rows(), [{'id': 'gone'}])\n"
    )
    here = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "cut"), here], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "cut").rglob("*.part"))
    assert set(store.begin(tmp_path / "cut", SETTINGS)) == {0}
    assert not list((tmp_path / "cut").rglob("*.part"))
    for folder in (tmp_path / "cut", filled(tmp_path / "whole", 1)):
        store.write_shard(folder, 1, tensors(seed=1), rows())
        store.finish(folder)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_what_a_living_run_writes_is_not_swept(tmp_path):
    store.begin(tmp_path, SETTINGS)
    with Drafts(tmp_path) as drafts:
        drafts.add(tmp_path / "shards/00000.safetensors", [b"half"])
        store.begin(tmp_path, SETTINGS)
        assert len(list(tmp_path.rglob("*.part"))) == 1
    assert not list(tmp_path.rglob("*.part"))


def _one_writer(folder, seed):
    for number in range(20):
        store.write_shard(folder, number, tensors(seed=seed), rows(start=100 * seed))


def test_two_writers_of_one_shard_leave_files_that_belong_together(tmp_path):
    store.begin(tmp_path, SETTINGS)
    spawning = multiprocessing.get_context("fork")
    writers = [spawning.Process(target=_one_writer, args=(tmp_path, seed)) for seed in (1, 2)]
    [writer.start() for writer in writers]
    [writer.join() for writer in writers]
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert not list(tmp_path.rglob("*.part"))
    for number in range(20):
        first = pq.read_table(tmp_path / f"index/{number:05d}.parquet")["id"][0].as_py()
        back = load_file(tmp_path / f"shards/{number:05d}.safetensors")
        assert torch.equal(back["layer_16/image"], tensors(seed=int(first[1:]) // 100)["layer_16/image"])


def test_a_whole_shard_stays_and_a_cut_one_is_made_again(tmp_path):
    folder = filled(tmp_path / "features")
    before = contents(folder)
    store.write_shard(folder, 0, tensors(seed=5), rows())
    assert contents(folder) == before
    os.truncate(folder / "shards/00000.safetensors", 300)
    assert set(store.begin(folder, SETTINGS)) == {1}
    store.write_shard(folder, 0, tensors(seed=0), rows())
    assert contents(folder) == before


def test_differing_settings_are_named_with_both_values(tmp_path):
    store.begin(tmp_path, SETTINGS)
    assert set(store.begin(tmp_path, {**SETTINGS, "positions": ["last_prompt", "image"]})) == set()
    asked = {"layers": [8, 24], "positions": ["last_prompt", "image"], "model": SETTINGS["model"], "seed": None}
    with pytest.raises(lp.BadInput, match=r"layers: \[8, 16\] there, \[8, 24\] asked; seed: nothing there, null asked"):
        store.begin(tmp_path, asked)


def test_settings_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(lp.BadInput, match="settings of a feature store are what JSON can hold"):
        store.begin(tmp_path / "features", {"device": torch.device("cpu")})


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(lp.BadInput, match=r"holds holiday\.jpg and no manifest\.json"):
        store.begin(tmp_path, SETTINGS)
    assert contents(tmp_path) == {"holiday.jpg": b""}
    with pytest.raises(lp.BadFile, match=r"holiday\.jpg is a file; a feature store is a folder"):
        store.begin(tmp_path / "holiday.jpg", SETTINGS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layer_2/row": torch.zeros(3, 2)}, r"one row for each of 4 rows"),
        ({"spans/image": torch.tensor([[0, 9]] * 4)}, r"spans/image leaves the 5 values"),
        ({"spans/image": torch.zeros(4, 2)}, r"int64 \[rows, 2\] was expected"),
        ({"layer_8/image": torch.zeros(6, 2)}, r"differing numbers of values"),
        ({"layer_8/last_prompt": torch.zeros(3, 6)}, r"layer_8/last_prompt is \[3, 6\], one row for each of 4"),
        ({"hidden": torch.zeros(4)}, r"<what>/<position>"),
        ({"layer_8/x": torch.zeros(4, dtype=torch.complex64)}, r"complex64 \[4\]; a store cannot hold that"),
    ],
)
def test_tensors_that_do_not_fit_the_rows_are_refused(tmp_path, changed, message):
    store.begin(tmp_path, SETTINGS)
    with pytest.raises(lp.BadInput, match=message):
        store.write_shard(tmp_path, 0, {**tensors(), **changed}, rows())
    assert contents(tmp_path).keys() == {"manifest.json"}


def test_names_of_the_store_are_not_for_columns(tmp_path):
    store.begin(tmp_path, SETTINGS)
    with pytest.raises(lp.BadInput, match="called shard_row; that name is the store's own"):
        store.write_shard(tmp_path, 0, tensors(1), [{"shard_row": 3}])


def test_shards_that_do_not_fit_together_are_named_at_the_end(tmp_path):
    folder = filled(tmp_path / "features", 1)
    other = {**tensors(), "layer_8/last_prompt": torch.zeros(4, 7)}
    store.write_shard(folder, 1, other, rows())
    with pytest.raises(lp.BadFile, match=r"00001\.safetensors does not fit the others: layer_8/last_prompt is"):
        store.finish(folder)


def test_a_full_disk_keeps_the_finished_shards(tmp_path):
    folder = filled(tmp_path / "features", 1)
    before = contents(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        big = {"layer_8/last_prompt": torch.zeros(4, 4096)}
        with pytest.raises(lp.BadFile, match=r"File too large; finished shards are kept, and the same command goes on"):
            store.write_shard(folder, 1, big, rows())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_one_sentence(tmp_path):
    folder = filled(tmp_path / "features", 1)
    (folder / "shards").chmod(0o500)
    try:
        with pytest.raises(lp.BadFile, match=r"Permission denied; finished shards are kept"):
            store.write_shard(folder, 1, tensors(), rows())
    finally:
        (folder / "shards").chmod(0o700)


def test_a_shard_needs_a_store_that_was_begun(tmp_path):
    with pytest.raises(lp.BadFile, match=r"holds no manifest\.json"):
        store.write_shard(tmp_path, 0, tensors(), rows())


def test_columns_without_one_type_become_json_text(tmp_path):
    store.begin(tmp_path, SETTINGS)
    values = [1, "a", None, {"b": []}]
    store.write_shard(tmp_path, 0, tensors(), [{"mixed": value, "empty": {}, "big": 2**70} for value in values])
    table = pq.read_table(tmp_path / "index/00000.parquet")
    assert [value and json.loads(value) for value in table["mixed"].to_pylist()] == values
    assert table["empty"].to_pylist() == ["{}"] * 4
    assert json.loads(table["big"][0].as_py()) == 2**70


def test_without_pyarrow_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(lp.BadInput, match=r"pip install 'llava_probe\[features\]'"):
        store.begin(tmp_path, SETTINGS)


def test_the_clock_leaves_no_trace(tmp_path, monkeypatch):
    one = filled(tmp_path / "one")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert contents(one) == contents(filled(tmp_path / "other"))
