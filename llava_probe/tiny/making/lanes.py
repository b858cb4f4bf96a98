"""Training side by side on the cores of one machine, as fast as the cores that happen to be free.

Threads inside one process wait for the slowest at every matrix product; where others use the machine too, that is
most of the time. Here each lane is a process with one thread and its own graph on shared weights. The lanes take small
shares of every batch from one counter until none is left, add up their gradients and each update a part of the weights,
so that a slowed lane does less instead of holding up the rest. One lane, on a GPU, is the ordinary loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, multiprocessing, nn

from llava_probe.tiny.making.batches import Encoder, training_batch

_PATIENCE = 600.0  # seconds that a lane waits for the others before it takes them for dead
_AHEAD = 4  # batches that a producer keeps ready


class Lanes:
    """What all lanes share."""

    def __init__(self, count: int):
        self.count = count
        context = multiprocessing.get_context("spawn")
        self.taken = context.Value("q", 0)
        self.progress = context.Value("d", 0.0)
        self.barrier = context.Barrier(count, timeout=_PATIENCE)
        self.lock = context.Lock()
        self.weights: list[Tensor] = []
        self.gradients: list[Tensor] = []


class Lane:
    """One lane's view of a run."""

    def __init__(self, lanes: Lanes, rank: int):
        self.lanes, self.rank = lanes, rank
        self.steps = 0

    @property
    def progress(self) -> float:
        """How far the part is, the same number in all lanes during a step."""
        return self.lanes.progress.value

    def share(self, params: list[nn.Parameter]) -> list[nn.Parameter]:
        """Put the parameters on the memory that the lanes share."""
        if self.lanes.count > 1:
            for param, weight in zip(params, self.lanes.weights, strict=True):
                param.data = weight
        return params

    def start(self, progress: float) -> None:
        """Begin a part."""
        self.steps = 0
        if self.rank == 0:
            self.lanes.taken.value = 0
            self.lanes.progress.value = progress
        self.meet()

    def meet(self) -> None:
        """Wait for the other lanes."""
        self.lanes.barrier.wait()

    def shares(self, per_step: int) -> Iterator[int]:
        """Numbers of the shares of this step that fall to this lane."""
        while True:
            with self.lanes.taken.get_lock():
                number = self.lanes.taken.value
                if number >= per_step * (self.steps + 1):
                    return
                self.lanes.taken.value += 1
            yield number

    def add_gradients(self, params: list[nn.Parameter]) -> None:
        """Add this lane's gradients to the sum; the sum becomes every lane's gradient."""
        if self.lanes.count == 1:
            return
        with self.lanes.lock:
            for param, total in zip(params, self.lanes.gradients, strict=True):
                if param.grad is not None and param.grad is not total:
                    total += param.grad
        for param, total in zip(params, self.lanes.gradients, strict=True):
            param.grad = total

    def finish_step(self, progress: float) -> None:
        """Clear the gradients and count the step, once all lanes have updated their part."""
        self.meet()
        self.steps += 1
        if self.rank == 0:
            for total in self.lanes.gradients:
                total.zero_()
            self.lanes.progress.value = progress
        self.meet()


class BatchStream:
    """Batches by number: made on demand, or ahead of time by other processes and then in order."""

    def __init__(self, tokenizer, first: int, size: int, text: bool, producers: int):
        self._make = (Encoder(tokenizer), first, size, text)
        context = multiprocessing.get_context("spawn")
        self._queues = [context.Queue(maxsize=_AHEAD) for _ in range(producers)]
        self._processes = [
            context.Process(target=_produce, args=(queue, tokenizer, rank, producers, first, size, text), daemon=True)
            for rank, queue in enumerate(self._queues)
        ]
        for process in self._processes:
            process.start()

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        if self._queues:
            return self._queues[number % len(self._queues)].get()
        encoder, first, size, text = self._make
        return training_batch(encoder, first + number * size, size, text)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()


def run_lanes(lane: Callable, settings: object, lanes: Lanes, params: list[Tensor]) -> None:
    """Run ``lane(settings, Lane)`` in every lane, the first of them here."""
    if lanes.count > 1:
        lanes.weights = [param.detach().clone().share_memory_() for param in params]
        lanes.gradients = [torch.zeros_like(param).share_memory_() for param in lanes.weights]
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_single_thread, args=(lane, settings, lanes, rank), daemon=True)
        for rank in range(1, lanes.count)
    ]
    for process in others:
        process.start()
    if lanes.count > 1:
        threads = torch.get_num_threads()
        _single_thread(lane, settings, lanes, 0)
        torch.set_num_threads(threads)
    else:
        lane(settings, Lane(lanes, 0))
    for process in others:
        process.join()


def _single_thread(lane: Callable, settings: object, lanes: Lanes, rank: int) -> None:
    torch.set_num_threads(1)
    lane(settings, Lane(lanes, rank))


def _produce(queue, tokenizer, rank: int, producers: int, first: int, size: int, text: bool) -> None:
    torch.set_num_threads(1)
    encoder = Encoder(tokenizer)
    for number in itertools.count(rank, producers):
        queue.put(training_batch(encoder, first + number * size, size, text))
