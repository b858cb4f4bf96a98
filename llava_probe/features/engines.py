"""Where shards are made: in this process, or by the workers of a Ray cluster. Same store, same rows.

An engine takes numbered runs of samples and leaves their shards in the folder; each shard has one writer, so workers
need nothing but the folder in common.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from llava_probe.errors import BadInput, ProbeError
from llava_probe.features import store
from llava_probe.features.extractor import Extractor, Recipe, Shard
from llava_probe.features.samples import Sample, digest, from_portable, portable
from llava_probe.loading import load
from llava_probe.model import VLM

#: Shards handed to Ray at once: bounds what the driver holds of a data set.
WAVE = 512

Runs = Iterable[tuple[int, Sequence[Sample]]]


@dataclass(frozen=True)
class Cluster:
    """How a Ray cluster is used.

    Attributes:
        workers: how many models run side by side.
        gpus: of each worker, a share (0.5) where two fit one card.
        cpus: of each worker, which is also how many threads torch uses there.
        address: of a running cluster (``"auto"``, ``"ray://head:10001"``); None starts one on this machine.
    """

    workers: int = 1
    gpus: float = 0.0
    cpus: float = 1.0
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
    store.write_shard(folder, shard.number, shard.tensors, shard.rows, shard.errors, digest(shard.samples))


def run_on_ray(
    model: VLM | tuple[str, dict[str, Any]],
    recipe: Recipe,
    runs: Runs,
    folder: Path,
    cluster: Cluster,
    *,
    strict: bool,
    tick: Callable[[int], None],
) -> None:
    """Let workers of a Ray cluster make and write the shards; each loads the model once.

    A worker that dies is replaced and its shard made again. The folder must be one that every worker can write.

    Args:
        model: a name and arguments for ``lp.load``, or a model that is sent to every worker.
        recipe, runs, folder: as for ``run_here``.
        cluster: how many workers, and where.
        strict: end at the first sample that fails.
        tick: called with the number of samples of each finished shard.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BadInput("the Ray engine needs Ray; pip install 'llava_probe[ray]'") from error
    if not ray.is_initialized():
        local = {"num_cpus": max(1, round(cluster.workers * cluster.cpus)), "include_dashboard": False}
        ray.init(address=cluster.address, log_to_driver=False, **({} if cluster.address else local))
    ray.data.DataContext.get_current().enable_progress_bars = False
    sent = ray.put(model) if isinstance(model, VLM) else model
    waves = iter(runs)
    while wave := list(islice(waves, WAVE)):
        items = [{"number": number, "samples": pickle.dumps([portable(s) for s in run])} for number, run in wave]
        made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Worker,
            fn_constructor_args=(sent, recipe, str(folder.expanduser().absolute()), strict, cluster.cpus),
            batch_size=1,
            batch_format="numpy",
            concurrency=cluster.workers,
            num_gpus=cluster.gpus,
            num_cpus=cluster.cpus,
        )
        try:
            for done in made.iter_rows():
                tick(int(done["samples"]))
        except ray.exceptions.RayError as error:
            raise BadInput(_cause(error)) from error


class _Worker:
    """One model on one worker of the cluster."""

    def __init__(self, model: Any, recipe: Recipe, folder: str, strict: bool, cpus: float) -> None:
        torch.set_num_threads(max(1, int(cpus)))
        if not isinstance(model, tuple):
            import ray

            model = ray.get(model) if isinstance(model, ray.ObjectRef) else model
        vlm = load(model[0], **model[1]) if isinstance(model, tuple) else model
        self._extractor, self._folder = Extractor(vlm, recipe, strict=strict), Path(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        counts = []
        for number, samples in zip(batch["number"], batch["samples"], strict=True):
            run = [from_portable(sample) for sample in pickle.loads(samples)]
            for shard in self._extractor.shards([(int(number), run)]):
                _write(self._folder, shard)
            counts.append(len(run))
        return {"samples": counts}


def _cause(error: BaseException) -> str:
    """The sentence of ours inside what Ray raised, or Ray's own first line."""
    inner: Any = error
    while inner is not None:
        if isinstance(inner, ProbeError):
            return str(inner)
        inner = getattr(inner, "cause", None) or inner.__cause__
    return str(error).strip().splitlines()[-1]
