"""A run that was killed, or that the disk or the memory failed, ends with the bytes of one that nothing befell.

Runs that are to be killed are forks of one process of their own, which has loaded the model and nothing else: a fork
of pytest itself would take over whatever threads the other tests have left there.
"""

import contextlib
import errno
import gc
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import llava_probe as lp
from llava_probe import tiny
from llava_probe.features import extractor, store
from tests.features.scene_rows import scene_rows

ASKED = {"layers": [2, 4], "positions": ["last_prompt", "image_mean", "answer"], "shard_rows": 3, "confidence": True}


def rows():
    """Four held-out scenes of two questions; between them two pictures that are not there."""
    made = scene_rows(4, 2)
    for place in (2, 7):
        made.insert(place, {**made[0], "image": f"/nowhere/{place}.png"})
    return made


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tiny_vlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "features"
    lp.extract(tiny_vlm, rows(), folder, **ASKED)
    return folder


class Forks:
    """A process that forks runs of the extraction as it is told, one a line."""

    def __init__(self):
        code = (
            "from tests import torchvision_half; torchvision_half.present(); "
            "from tests.features import test_nothing_lost; test_nothing_lost.serve()"
        )
        here = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": str(here), "HF_HUB_OFFLINE": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self._process = subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)
        self._hear()

    def begin(self, folder, **limits):
        """Start a run, under limits as ``_run`` takes them; returns its process."""
        self._process.stdin.write(json.dumps([str(folder), limits]) + "\n")
        return self._hear()

    def end(self):
        """How it ended: its exit status, or minus the signal that killed it."""
        return self._hear()

    def run(self, folder, **limits):
        self.begin(folder, **limits)
        return self.end()

    def _hear(self):
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended"
        return int(line)

    def close(self):
        self._process.stdin.close()
        self._process.wait(30)


def serve():
    """What ``Forks`` talks to."""
    torch.set_num_threads(1)
    vlm, asked = lp.load(), rows()
    with tempfile.TemporaryDirectory() as folder:  # once here, so that the forks are spared what a first run costs
        lp.extract(vlm, asked, Path(folder) / "features", **ASKED)
    print(os.getpid(), flush=True)
    for line in sys.stdin:
        folder, limits = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(_run(vlm, asked, folder, **limits))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(vlm, asked, folder, operations=None, largest=None):
    """Killed before it has done so many operations on files of the store, none of which grows beyond ``largest``."""
    if operations is not None:
        left = iter(range(operations))

        def count(event, args):
            ours = event in ("open", "os.rename", "os.remove", "os.mkdir") and str(args[0]).startswith(folder)
            if ours and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        lp.extract(vlm, asked, folder, **ASKED)
    except lp.BadFile as error:
        Path(f"{folder}.told").write_text(str(error))
        return TOLD
    return 0


TOLD = 3  # the exit status of a run that ended with a sentence of ours


@pytest.fixture(scope="module")
def forks():
    made = Forks()
    yield made
    made.close()


def assert_whole(folder):
    """Every file under its final name can be read by its own library, and a row of the index is one of each tensor."""
    final = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(".")]
    counts = {path.stem: pq.read_table(path).num_rows for path in final if path.parent.name == "index"}
    for path in final:
        if path.suffix == ".safetensors":
            kept = load_file(path)
            firsts = {len(tensor) for name, tensor in kept.items() if name.endswith(("/last_prompt", "/image_mean"))}
            assert path.stem not in counts or firsts <= {counts[path.stem]}
        elif path.suffix == ".parquet":
            pq.read_table(path)
        else:
            json.loads(path.read_bytes())
    assert all((Path(folder) / f"shards/{stem}.safetensors").exists() for stem in counts)


def killed_until_it_survives(folder, kill):
    """Let ``kill`` end runs of one extraction until one of them is quicker; how many it has ended."""
    kills = 0
    while (status := kill(folder)) == -signal.SIGKILL:
        kills += 1
        assert_whole(folder)
    assert status == 0
    return kills


def worked(child):
    """Seconds of a processor that a run has had, None once it ended: a busy machine stretches all others."""
    with contextlib.suppress(psutil.NoSuchProcess):
        times = psutil.Process(child).cpu_times()
        return times.user + times.system


def test_runs_killed_at_any_moment_lose_nothing(forks, undisturbed, tmp_path):
    rng = random.Random(0)
    child, whole = forks.begin(tmp_path / "measured"), 0.0
    while (now := worked(child)) is not None:
        whole = now
        time.sleep(0.002)
    assert forks.end() == 0

    def kill(folder):
        child, moment = forks.begin(folder), rng.uniform(0, whole)
        while (now := worked(child)) is not None and now < moment:
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        return forks.end()

    kills = number = 0
    while kills < 12:
        kills += killed_until_it_survives(tmp_path / str(number), kill)
        assert contents(tmp_path / str(number)) == contents(undisturbed)
        number += 1


def test_runs_killed_before_an_operation_on_a_file_lose_nothing(forks, undisturbed, tmp_path):
    rng = random.Random(1)
    kills = number = 0
    while kills < 8:
        kills += killed_until_it_survives(
            tmp_path / str(number), lambda folder: forks.run(folder, operations=rng.randrange(OPERATIONS))
        )
        assert contents(tmp_path / str(number)) == contents(undisturbed)
        number += 1


OPERATIONS = 90  # about how many a run makes on the files of this store


def test_a_kill_before_each_operation_of_the_end_loses_nothing(forks, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "f")
    for path in [*(tmp_path / "f").rglob("00002.*"), tmp_path / "f/errors.parquet"]:
        path.unlink()
    reached = iter(range(OPERATIONS))
    kills = killed_until_it_survives(tmp_path / "f", lambda folder: forks.run(folder, operations=next(reached)))
    assert kills >= 18
    assert contents(tmp_path / "f") == contents(undisturbed)


def test_a_full_disk_is_one_sentence_and_loses_nothing(forks, undisturbed, tmp_path):
    folder = tmp_path / "features"
    assert forks.run(folder, operations=OPERATIONS // 2) == -signal.SIGKILL
    before = {name: data for name, data in contents(folder).items() if ".part" not in name}
    assert "index/00000.parquet" in before
    assert forks.run(folder, largest=600) == TOLD
    told = Path(f"{folder}.told").read_text()
    assert told.endswith("File too large; finished shards are kept, and the same command goes on from there")
    assert contents(folder) == before
    assert forks.run(folder) == 0
    assert contents(folder) == contents(undisturbed)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_the_disk_says_is_one_sentence_and_loses_nothing(tiny_vlm, undisturbed, tmp_path, monkeypatch, number):
    synced, fsync = [], os.fsync

    def failing(file):
        synced.append(file)
        if len(synced) > 6:
            raise OSError(number, os.strerror(number))
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(lp.BadFile, match=f"{os.strerror(number)}; finished shards are kept"):
            lp.extract(tiny_vlm, rows(), tmp_path / "f", **ASKED)
    kept = contents(tmp_path / "f")
    assert not any(name.endswith(".part") for name in kept)
    assert kept.keys() >= {"index/00000.parquet", "shards/00000.safetensors"}
    assert all(data == contents(undisturbed)[name] for name, data in kept.items() if name != "manifest.json")
    lp.extract(tiny_vlm, rows(), tmp_path / "f", **ASKED)
    assert contents(tmp_path / "f") == contents(undisturbed)


@pytest.mark.parametrize("inside", ["", "below", "shards", "index"])
def test_a_file_where_a_folder_belongs_is_one_sentence(tiny_vlm, undisturbed, tmp_path, inside):
    folder = tmp_path / "f"
    if inside in ("shards", "index"):
        folder.mkdir()
        shutil.copy(undisturbed / "manifest.json", folder)
        (folder / inside).touch()
    else:
        folder.touch()
    with pytest.raises(lp.BadFile, match=r"is a file|File exists|Not a directory"):
        lp.extract(tiny_vlm, rows(), folder / inside if inside == "below" else folder, **ASKED)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written_is_one_sentence(tiny_vlm, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(lp.BadFile, match="Permission denied"):
        lp.extract(tiny_vlm, rows(), tmp_path / "locked/f", **ASKED)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"layers": [2, 3]}, r'layers: \["layer_2", "layer_4"\] there, \["layer_2", "layer_3"\] asked'),
        ({"positions": ["last_prompt"]}, r'positions: \["last_prompt", "image_mean", "answer"\] there'),
        ({"confidence": False}, r"confidence: true there, false asked"),
        ({"shard_rows": 5}, r"shard_rows: 3 there, 5 asked"),
        ({"store_dtype": "float16"}, r'dtype: "float32" there, "float16" asked'),
    ],
)
def test_other_settings_are_refused_with_the_difference(tiny_vlm, undisturbed, changed, told):
    before = contents(undisturbed)
    with pytest.raises(lp.BadInput, match=f"made with other settings.*{told}"):
        lp.extract(tiny_vlm, rows(), undisturbed, **{**ASKED, **changed})
    assert contents(undisturbed) == before


def test_another_model_is_refused(undisturbed):
    before = contents(undisturbed)
    with pytest.raises(lp.BadInput, match=r"made with other settings \(model.*: .* there, .* asked\)"):
        lp.extract(lp.load(random_weights=0), rows(), undisturbed, **ASKED)
    assert contents(undisturbed) == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda asked: asked[4].update(question="What is there?"), "shard 1 of .* was made of other samples"),
        (lambda asked: asked[0].update(image=tiny.scene(99).image), "shard 0 of .* was made of other samples"),
        (lambda asked: asked[-1].update(kind="another"), "shard 2 of .* was made of other samples"),
        (lambda asked: asked.pop(0), "shard 0 of .* was made of other samples"),
        (lambda asked: asked.__delitem__(slice(4, None)), "other samples|has 4 shards, this data set gives"),
    ],
)
def test_other_samples_are_refused(tiny_vlm, undisturbed, change, told):
    before, asked = contents(undisturbed), rows()
    change(asked)
    with pytest.raises(lp.BadInput, match=told):
        lp.extract(tiny_vlm, asked, undisturbed, **ASKED)
    assert contents(undisturbed) == before


# Memory: ``read`` is the one pass through the model; the trial passes before it are not counted.


@pytest.fixture
def scarce(monkeypatch):
    """Makes passes run out of memory where ``too_much`` says so of their samples; returns the sizes of the others."""

    def limited(too_much):
        passed, read = [], extractor.read

        def reading(anatomy, model, batch, *args):
            samples = [branch.sample for pack in batch.packs for branch in pack.branches]
            if too_much(samples):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.")
            passed.append(len(samples))
            return read(anatomy, model, batch, *args)

        monkeypatch.setattr(extractor, "read", reading)
        return passed

    return limited


LARGE = {**ASKED, "shard_rows": 5, "batch_size": 8}


@pytest.mark.filterwarnings("ignore:memory does not hold")
@pytest.mark.parametrize("most", [1, 2, 3])
def test_memory_that_runs_out_halves_the_batch(tiny_vlm, tmp_path, scarce, most):
    plenty = lp.extract(tiny_vlm, rows(), tmp_path / "plenty", **LARGE)
    passed = scarce(lambda samples: len(samples) > most)
    found = lp.extract(tiny_vlm, rows(), tmp_path / "scarce", **LARGE)
    assert max(passed) <= most
    assert found.column("id") == plenty.column("id")
    assert found.errors().equals(plenty.errors())
    for what, position in plenty.keys():  # noqa: SIM118  # Features is no mapping
        for one, other in zip(found[what, position], plenty[what, position], strict=True):
            assert torch.allclose(one, other, atol=1e-5, rtol=1e-5)


class Killed(BaseException):
    """As if by a signal, right after a shard was written."""


def killed_after(number, vlm, asked, folder, monkeypatch, settings):
    with monkeypatch.context() as patched:
        write = store.write_shard

        def and_die(folder, shard, *args, **kwargs):
            write(folder, shard, *args, **kwargs)
            if shard == number:
                raise Killed

        patched.setattr(store, "write_shard", and_die)
        with pytest.raises(Killed):
            lp.extract(vlm, asked, folder, **settings)
    lp.extract(vlm, asked, folder, **settings)


@pytest.mark.filterwarnings("ignore:memory does not hold")
@pytest.mark.parametrize("most", [2, 8])
def test_a_kill_after_each_shard_changes_no_byte(tiny_vlm, tmp_path, scarce, monkeypatch, most):
    """Not where memory is short, nor where the shard that a run goes on with begins with pictures that are gone."""
    scarce(lambda samples: len(samples) > most)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # in a process of many tests it takes longer than all passes
    made = scene_rows(6, 2)
    gone = [{**row, "image": f"/nowhere/{place}.png"} for place, row in enumerate(made[:10])]
    asked, settings = [*made, *gone, *made[:2]], {"layers": [3], "positions": ["last_prompt", "text"], "shard_rows": 6}
    lp.extract(tiny_vlm, asked, tmp_path / "undisturbed", **settings)
    for number in range(3):
        killed_after(number, tiny_vlm, asked, tmp_path / str(number), monkeypatch, settings)
        assert contents(tmp_path / str(number)) == contents(tmp_path / "undisturbed")


def test_a_shard_made_again_elsewhere_is_made_as_the_manifest_says(tiny_vlm, tmp_path, scarce):
    whole = [row for row in rows() if not isinstance(row["image"], str)]
    scarce(lambda samples: len(samples) > 2)
    with pytest.warns(UserWarning, match="memory does not hold 8 questions at once.*batch_size=2 is quicker"):
        told = lp.extract(tiny_vlm, whole, tmp_path / "f", **LARGE)
    assert [shard["batch_size"] for shard in told.manifest["shards"]] == [2, 8]  # the second has two rows
    before = contents(tmp_path / "f")
    passed = scarce(lambda samples: False)
    (tmp_path / "f/index/00000.parquet").unlink()
    lp.extract(tiny_vlm, whole, tmp_path / "f", **LARGE)
    assert contents(tmp_path / "f") == before
    assert passed
    assert max(passed) <= 2


def test_a_sample_that_memory_never_holds_is_a_row_of_errors(tiny_vlm, tmp_path, scarce):
    plenty = lp.extract(tiny_vlm, rows(), tmp_path / "plenty", **LARGE)
    scarce(lambda samples: any(sample.row == 5 for sample in samples))
    found = lp.extract(tiny_vlm, rows(), tmp_path / "scarce", **LARGE)
    reasons = dict(zip(*(found.errors()[name].to_pylist() for name in ("row", "reason")), strict=True))
    assert sorted(reasons) == [2, 5, 7]
    assert reasons[5].startswith("out of memory, alone in its batch")
    assert found.column("row") == [row for row in plenty.column("row") if row != 5]


def test_strict_ends_where_memory_holds_no_single_sample(tiny_vlm, tmp_path, scarce):
    whole = [row for row in rows() if not isinstance(row["image"], str)]
    scarce(lambda samples: any(sample.row == 5 for sample in samples))
    with pytest.raises(lp.BadInput, match="sample 5: out of memory, alone in its batch"):
        lp.extract(tiny_vlm, whole, tmp_path / "f", strict=True, **LARGE)
    assert not lp.Features(tmp_path / "f").complete


def test_strict_ends_at_a_picture_that_is_not_there(tiny_vlm, tmp_path):
    with pytest.raises(lp.BadInput, match=r"/nowhere/2\.png"):
        lp.extract(tiny_vlm, rows(), tmp_path / "f", strict=True, **ASKED)
