"""Workers of a Ray cluster make the rows that one process makes, also when one of them dies."""

import logging
import os
import pickle
import shutil
import sys
import threading
import time
import uuid
from dataclasses import replace

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

import llava_probe as lp
from llava_probe import tiny
from llava_probe.features import engines
from llava_probe.features.engines import RETRIES, Cluster, _waves, _Worker
from llava_probe.features.extractor import Recipe
from llava_probe.features.samples import read_samples
from tests.features.scene_rows import scene_rows

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # nothing but loopback
ray = pytest.importorskip("ray")

ASKED = {"layers": [2, 4], "positions": ["last_prompt", "image_in_mask", "answer"], "shard_rows": 4, "confidence": True}
OBJECT_STORE = 200_000_000


@pytest.fixture(scope="module")
def rows():
    """Ten held-out scenes of three questions, each with a mask in memory; one picture is not there."""
    made = scene_rows(10, 3)
    made[7] = {**made[7], "image": "/nowhere.png"}
    return made


@pytest.fixture(scope="module")
def vlm(tiny_vlm):
    """Reads pictures with PIL: workers lack the half of torchvision that the tests put into this process."""
    return lp.VLM(tiny_vlm.model, AutoProcessor.from_pretrained(tiny.path(), backend="pil"))


@pytest.fixture(scope="module")
def local(vlm, rows, tmp_path_factory):
    return lp.extract(vlm, rows, tmp_path_factory.mktemp("local") / "features", **ASKED)


@pytest.fixture(scope="module")
def cluster():
    """Two workers on a Ray of one thread each."""
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield Cluster(workers=2)
    ray.shutdown()


NUMBERS = {"token_logprobs", "answer_logprob", "top_probability", "entropy"}


def assert_same(found, expected):
    """Tensors and numbers to 1e-5, all else exactly, file by file."""
    files, others = (
        sorted(p.relative_to(one.folder) for p in one.folder.rglob("[!.]*.*")) for one in (expected, found)
    )
    assert others == files
    for path in files:
        if path.suffix == ".safetensors":
            torch.testing.assert_close(load_file(found.folder / path), load_file(expected.folder / path), **CLOSE)
        elif path.suffix == ".parquet":
            one, other = (pq.read_table(store.folder / path) for store in (found, expected))
            assert one.column_names == other.column_names
            for name in other.column_names:
                ours, theirs = one[name].to_pylist(), other[name].to_pylist()
                if name in NUMBERS:
                    torch.testing.assert_close(ours, theirs, **CLOSE)
                else:
                    assert ours == theirs


CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def test_two_workers_make_the_rows_of_one_process(vlm, rows, local, cluster, tmp_path):
    vlm.generate(rows[0]["image"], rows[0]["question"], max_new_tokens=1)  # one that has run is sent all the same
    found = lp.extract(vlm, rows, tmp_path / "f", engine="ray", cluster=cluster, **ASKED)
    assert_same(found, local)
    assert len(found) == len(rows) - 1
    assert "/nowhere.png" in pq.read_table(found.folder / "errors.parquet")["reason"][0].as_py()


def test_a_killed_worker_is_replaced(vlm, rows, local, cluster, tmp_path):
    killed = []

    def kill():
        while not killed and running.is_set():
            if len(list((tmp_path / "f/index").glob("[0-9]*.parquet"))) >= 2:
                killed.extend(workers()[:1])
                [worker.kill() for worker in killed]
            time.sleep(0.005)

    running = threading.Event()
    running.set()
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = lp.extract(vlm, rows, tmp_path / "f", engine="ray", cluster=cluster, **ASKED)
    finally:
        running.clear()
        killer.join()
    assert killed
    assert_same(found, local)


def workers():
    """Our Ray's processes that hold a model."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::MapWorker"):
                found.append(process)
        except psutil.Error:
            pass
    return found


def test_a_store_begun_here_is_finished_there(vlm, rows, local, cluster, tmp_path):
    half = shutil.copytree(local.folder, tmp_path / "half")
    for path in [*half.rglob("*0000[3-9].*"), half / "errors.parquet"]:
        path.unlink()
    whole = half / "shards/00001.safetensors"
    before = whole.stat().st_mtime_ns
    found = lp.extract(vlm, rows, half, engine="ray", cluster=replace(cluster, workers=1), **ASKED)
    assert_same(found, local)
    assert whole.stat().st_mtime_ns == before


def test_strict_ends_with_the_sentence_of_the_sample(rows, cluster, tmp_path):
    with pytest.raises(lp.BadInput, match=r"/nowhere\.png"):
        lp.extract(
            "tiny", rows, tmp_path / "f", engine="ray", cluster=replace(cluster, workers=1), strict=True, **ASKED
        )
    assert not lp.Features(tmp_path / "f").complete


def test_a_shard_that_ends_its_workers_is_named(rows, tmp_path):
    for _ in range(RETRIES + 1):
        (tmp_path / f".00000.{uuid.uuid4().hex}.part").touch()
    worker = _Worker(("tiny", {}), Recipe((2,), ("last_prompt",)), str(tmp_path), False, Cluster())
    (wave,) = _waves([(0, list(read_samples(rows[:2])))])
    answer = worker({name: [value] for name, value in wave[0].items()})
    with pytest.raises(lp.BadInput, match=r"shard 0 ended its worker 4 times"):
        raise pickle.loads(answer["error"][0])


def test_waves_hold_what_the_driver_may_hold(rows, monkeypatch):
    runs = [(number, [sample]) for number, sample in enumerate(read_samples(rows[:7]))]
    size = max(len(row["samples"]) for wave in _waves(runs) for row in wave)
    monkeypatch.setattr(engines, "WAVE_BYTES", 3 * size)
    waves = list(_waves(iter(runs)))
    assert [row["number"] for wave in waves for row in wave] == list(range(7))
    assert all(sum(len(row["samples"]) for row in wave) <= 3 * size for wave in waves)
    assert max(map(len, waves)) >= 3


def test_without_ray_one_sentence_says_what_to_install(rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(lp.BadInput, match=r"pip install 'llava_probe\[ray\]'"):
        lp.extract("tiny", rows[:2], tmp_path / "f", engine="ray", layers=[2])


def test_a_cluster_has_workers(rows, tmp_path):
    with pytest.raises(lp.BadInput, match=r"takes a whole number from 1 to .*; got 0"):
        lp.extract("tiny", rows[:2], tmp_path / "f", engine="ray", cluster=Cluster(workers=0), layers=[2])
