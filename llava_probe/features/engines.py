"""Where shards are made: in this process, or by the workers of a Ray cluster. Same store, same rows.

An engine takes numbered runs of samples and leaves their shards in the folder; each shard has one writer, so workers
need nothing but the folder in common.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch

from llava_probe.border import Count, Limits, checked
from llava_probe.errors import BadInput, ProbeError, first_line
from llava_probe.features import store
from llava_probe.features.extractor import Extractor, Recipe, Shard
from llava_probe.features.portable import from_portable, portable
from llava_probe.features.samples import Sample, digest
from llava_probe.features.sending import packed, unpacked
from llava_probe.features.trial import OF_A_SAMPLE, Sharing
from llava_probe.inside.undo import Undo, undoing
from llava_probe.loading import load
from llava_probe.model import VLM

#: Shards handed to Ray at once, and bytes of their samples (of their pictures, where those are no files): bounds what
#: the driver holds of a data set. Each wave loads the models anew, so there are few.
WAVE_SHARDS, WAVE_BYTES = 20_000, 2_000_000_000

#: How often a shard is tried again whose worker died. Ray alone would replace workers without end, also where it is
#: the shard that kills them, by its memory.
RETRIES = 3

Runs = Iterable[tuple[int, Sequence[Sample]]]


@checked
@dataclass(frozen=True)
class Cluster:
    """How a Ray cluster is used.

    Attributes:
        workers: how many models run side by side.
        gpus: of each worker, a share (0.5) where two fit one card.
        cpus: of each worker, which is also how many threads torch uses there.
        address: of a running cluster (``"auto"``, ``"head:6379"``, ``"ray://head:10001"``); None starts one on this
            machine for the time of the run. Neither counts where this process has called ``ray.init`` already.
    """

    workers: Count = 1
    gpus: Annotated[float, Limits(0, 1_000)] = 0.0
    cpus: Annotated[float, Limits(0, 10_000)] = 1.0
    address: str | None = None


def run_here(extractor: Extractor, runs: Runs, folder: Path) -> None:
    """Make and write the shards of ``runs``; one is written while the next is made.

    Raises:
        ProbeError: what a strict run failed on, or the store cannot be written.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="shards") as pool:
        writing: Future[None] | None = None
        for shard in extractor.shards(runs):
            if writing is not None:
                writing.result()
            writing = pool.submit(_write, folder, shard)
        if writing is not None:
            writing.result()


def _write(folder: Path, shard: Shard) -> None:
    made_of = digest(shard.samples)
    store.write_shard(folder, shard.number, shard.tensors, shard.rows, shard.errors, made_of, shard.batch_size)


def run_on_ray(
    model: VLM | tuple[str, dict[str, Any]],
    recipe: Recipe,
    runs: Runs,
    folder: Path,
    cluster: Cluster,
    *,
    strict: bool,
    tick: Callable[[int], None],
    sharing: Sharing | None = None,
    sizes: Mapping[int, int] | None = None,
) -> None:
    """Let workers of a Ray cluster make and write the shards; each loads the model once a wave.

    A worker that dies is replaced and its shard made again. The folder must be one that every worker can write.

    Args:
        model: a name and arguments for ``lp.load``, or a model that is sent to every worker.
        recipe, runs, folder: as for ``run_here``.
        cluster: how many workers, and where.
        strict: end at the first sample that fails.
        tick: called with the number of samples of each finished shard.
        sharing, sizes: as ``Extractor`` takes them; without ``sharing`` each worker tries for itself.

    Raises:
        ProbeError: what a worker's part of a strict run failed on, or the store cannot be written.
        Exception: a bug, as it came up in a worker.
        BadInput: Ray is not installed, there is no such cluster, or a shard killed its workers again and again.
    """
    if cluster.workers < 1:
        raise BadInput(f"a cluster has at least one worker; got workers={cluster.workers!r}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if cluster.address is None:  # on loopback alone; Ray's name for it speaks of two systems, Linux heeds it too
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BadInput("the Ray engine needs Ray; pip install 'llava_probe[ray]'") from error
    with _connected(cluster):
        sent = ray.put(packed(model)) if isinstance(model, VLM) else model
        arguments = (sent, recipe, str(folder.expanduser().absolute()), strict, cluster, sharing, sizes)
        for wave in _waves(runs):
            made = ray.data.from_items(wave, override_num_blocks=len(wave)).map_batches(
                _Worker,
                fn_constructor_args=arguments,
                batch_size=1,
                batch_format="numpy",
                compute=ray.data.ActorPoolStrategy(
                    size=min(cluster.workers, len(wave)), max_tasks_in_flight_per_actor=1
                ),
                num_gpus=cluster.gpus,
                num_cpus=cluster.cpus,
            )
            try:
                for done in made.iter_rows():
                    if done["error"]:
                        raise pickle.loads(done["error"])
                    tick(int(done["samples"]))
            except ray.exceptions.RayError as error:
                raise BadInput(f"the Ray workers failed: {first_line(error)}") from error


@contextmanager
def _connected(cluster: Cluster) -> Iterator[None]:
    """A Ray that is quiet and there; one that was not there before is left again."""
    import ray

    with undoing() as undo:
        _join(cluster, undo)
        context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
        shown, level = context.enable_progress_bars, log.level
        undo(lambda: setattr(context, "enable_progress_bars", shown))
        undo(lambda: log.setLevel(level))
        context.enable_progress_bars = False
        log.setLevel(logging.ERROR)
        yield


def _join(cluster: Cluster, undo: Undo) -> None:
    """Be connected with a Ray; one that was not there before ends with ``undo``."""
    import ray

    if ours := not ray.is_initialized():
        undo(ray.shutdown)
        where: dict[str, Any] = {"address": cluster.address}
        if cluster.address is None:
            cpus = max(1, math.ceil(cluster.workers * cluster.cpus))
            where = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it calls every actor of Ray Data's an error
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            root: BaseException = error
            while root.__cause__ is not None:  # why is the last line of Ray's innermost error
                root = root.__cause__
            reason = (str(root).strip() or type(root).__name__).splitlines()[-1]
            raise BadInput(f"no Ray at {cluster.address or 'this machine'}: {reason}") from error
    found = ray.cluster_resources().get("GPU", 0)
    if ours and cluster.address is None and cluster.gpus * cluster.workers > found:  # others may still grow
        asked = f"{cluster.workers} workers with {cluster.gpus:g} GPUs each"
        raise BadInput(f"{asked} were asked for, and Ray sees {found:g} GPUs here")


def _waves(runs: Runs) -> Iterator[list[dict[str, Any]]]:
    """Runs of samples as rows for Ray, so many as the driver may hold."""
    wave: list[dict[str, Any]] = []
    held = 0
    for number, run in runs:
        sent = pickle.dumps([portable(sample) for sample in run])
        if wave and (len(wave) == WAVE_SHARDS or held + len(sent) > WAVE_BYTES):
            yield wave
            wave, held = [], 0
        wave.append({"number": number, "samples": sent})
        held += len(sent)
    if wave:
        yield wave


class _Worker:
    """One model on one worker of the cluster."""

    def __init__(
        self,
        model: Any,
        recipe: Recipe,
        folder: str,
        strict: bool,
        cluster: Cluster,
        sharing: Sharing | None = None,
        sizes: Mapping[int, int] | None = None,
    ) -> None:
        self._model, self._recipe, self._folder, self._strict = model, recipe, Path(folder), strict
        self._sharing, self._sizes = sharing, sizes
        self._on_gpu = cluster.gpus > 0
        torch.set_num_threads(max(1, int(cluster.cpus)))

    @cached_property
    def _extractor(self) -> Extractor:
        """Made at the first shard, whose answer can tell why it cannot be made."""
        if isinstance(self._model, tuple):
            name, given = self._model
            vlm = load(name, **given)
        else:
            import ray

            vlm = unpacked(ray.get(self._model))
            if self._on_gpu:
                vlm.model.to("cuda")  # the one that Ray lets this process see
        return Extractor(vlm, self._recipe, strict=self._strict, sharing=self._sharing, sizes=self._sizes)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One shard. What goes wrong is an answer: of an exception Ray makes pages."""
        (number,), (sent,) = batch["number"], batch["samples"]
        run = [from_portable(sample) for sample in pickle.loads(sent)]
        try:
            with _counted(self._folder, int(number)):
                for shard in self._extractor.shards([(int(number), run)]):
                    _write(self._folder, shard)
        except Exception as error:  # raised again by the driver
            return {"samples": [0], "error": [_sent(error)]}
        return {"samples": [len(run)], "error": [b""]}


@contextmanager
def _counted(folder: Path, number: int) -> Iterator[None]:
    """Leave a mark while a shard is made; marks that are there already are of workers that died over it.

    Raises:
        BadInput: too many died.
    """
    marks = list(folder.glob(f".{number:05d}.*.part"))  # a name that ``store.begin`` sweeps
    try:
        if len(marks) > RETRIES:
            told = f"shard {number} ended its worker {len(marks)} times, killed for its memory perhaps"
            raise BadInput(f"{told}; give workers more, or another folder with smaller batch_size or shard_rows")
        marks.append(folder / f".{number:05d}.{uuid.uuid4().hex}.part")
        marks[-1].touch()
        yield
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)


def _sent(error: Exception) -> bytes:
    """An error for the driver: a sample's or a worker's as one of ours, a bug as it is; where it happened is noted."""
    if isinstance(error, ProbeError):
        return pickle.dumps(error)
    error.add_note("".join(traceback.format_exception(error)))
    if not isinstance(error, OF_A_SAMPLE):
        with suppress(Exception):  # an error that does not survive the way is told in words
            sent = pickle.dumps(error)
            pickle.loads(sent)
            return sent
    told = BadInput(f"a worker failed: {type(error).__name__}: {first_line(error)}")
    told.__notes__ = error.__notes__
    return pickle.dumps(told)
