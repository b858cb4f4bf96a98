"""The training itself: transformers' Trainer over passes that were laid out beforehand.

Optimizer, schedule, several cards, gradient checkpointing and what a checkpoint holds are the Trainer's; ours are the
passes, the loss and when a checkpoint counts. One counts when all of it was written: a run that is killed at any moment
goes on from the last that does, and ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from llava_probe.errors import BadFile, NotANumber, ProbeError, first_line
from llava_probe.finetune.passes import passed, prediction, summed_loss, trained_logits
from llava_probe.finetune.plan import TrainingPlan
from llava_probe.finetune.schedule import PassRows
from llava_probe.finetune.tuned import frozen_counters
from llava_probe.model import VLM

#: Of all steps: those over which the learning rate rises, as in LLaVA's two stages.
WARM_UP = 0.03

#: How often a run tells its loss, measures what was held out, and keeps a checkpoint, at most so many seconds apart.
_TOLD, MEASURED_TIMES, _KEPT_SECONDS = 200, 10, 300

#: Steps after which a checkpoint is kept in any case; None: half a run, but no fewer than are soon made again.
KEPT_STEPS: int | None = None
_FEWEST = 20

_WHOLE = "whole"  # the file that says that a checkpoint was written to its end
_WEIGHTS = "trained.safetensors"  # of a checkpoint: what was trained, by the names that the model has here


def train(
    vlm: VLM,
    runner: Any,
    plan: TrainingPlan,
    folder: Path,
    *,
    lr: float,
    seed: int,
    tell: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train what of the model wants gradients, from the last whole checkpoint on.

    Args:
        vlm: whose processor and parts are used.
        runner: the model as it is trained, changed in place.
        plan: the passes and how they are taken.
        folder: of checkpoints.
        lr: the highest learning rate; ``seed``: of everything drawn.
        tell: called after each step with what is known of it: ``step``, ``loss`` ...

    Returns:
        What was measured on the way: ``step``, ``loss``, ``learning_rate``; ``eval_loss`` and ``eval_exact``.
    """
    trainer = _Trainer(vlm, runner, plan, _arguments(vlm, plan, folder, lr, seed))
    last = last_whole(folder)
    trainer.add_callback(_Keeping(runner, last, tell))
    with writing_run(folder):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    trainer.accelerator.unwrap_model(runner, keep_fp32_wrapper=False)  # its forward pass is its own again
    return [dict(entry) for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]


@contextmanager
def writing_run(folder: Path) -> Iterator[None]:
    """What goes wrong while weights are written, as one sentence: the libraries that write have errors of their own.

    Raises:
        BadFile: the disk is full, say.
    """
    try:
        yield
    except ProbeError:
        raise
    except (SafetensorError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Writer" not in str(error):  # torch's PytorchStreamWriter
            raise
        kept = "the same call goes on from the last checkpoint that is whole"
        raise BadFile(f"{folder} could not be written: {first_line(error)}; {kept}") from error


def this_process() -> PartialState:
    """Which of the launcher's processes this is; from now on ``"cuda"`` is its own card."""
    return PartialState(cpu=not torch.cuda.is_available())


def last_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written to its end; what is not whole is taken away."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    found.sort(key=lambda path: int(path.name.rpartition("-")[2]))
    whole = [path for path in found if _is_whole(path)]
    for path in found:
        if path not in whole:
            shutil.rmtree(path, ignore_errors=True)
    return whole[-1] if whole else None


def _is_whole(checkpoint: Path) -> bool:
    """Whether each file that was in it at its end is there, and as long."""
    try:
        told = json.loads((checkpoint / _WHOLE).read_text())
        return bool(told == _lengths(checkpoint))
    except (OSError, ValueError):
        return False


def _lengths(checkpoint: Path) -> dict[str, int]:
    """Bytes of each file of a checkpoint."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != _WHOLE]
    return {str(path.relative_to(checkpoint)): path.stat().st_size for path in sorted(files)}


def _arguments(vlm: VLM, plan: TrainingPlan, folder: Path, lr: float, seed: int) -> TrainingArguments:
    return _OnOneCard(
        output_dir=str(folder),
        per_device_train_batch_size=1,  # a pass, whatever it holds
        gradient_accumulation_steps=plan.accumulated,
        max_steps=plan.steps,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=round(WARM_UP * plan.steps),
        weight_decay=0.0,
        optim="adamw_torch",
        bf16=vlm.model.dtype == torch.bfloat16,
        use_cpu=vlm.model.device.type == "cpu",
        logging_steps=max(1, plan.steps // _TOLD),
        eval_strategy="steps" if plan.held_out else "no",
        eval_steps=math.ceil(plan.steps / MEASURED_TIMES),
        save_strategy="steps",
        save_steps=KEPT_STEPS or max(_FEWEST, plan.steps // 2),
        save_total_limit=2,
        seed=seed,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        logging_nan_inf_filter=False,
    )


class _OnOneCard(TrainingArguments):
    """Settings of a process that has one card: several are several processes, which the launcher starts."""

    @property
    def n_gpu(self) -> int:
        """Of those that are seen, one; with more the Trainer would deal each pass out among them."""
        return min(int(super().n_gpu), 1)


class _Passes(Dataset[dict[str, Any]]):
    """The passes of a run, made when they are needed."""

    def __init__(self, vlm: VLM, passes: Sequence[PassRows]) -> None:
        self._vlm, self._passes = vlm, passes

    def __len__(self) -> int:
        return len(self._passes)

    def __getitem__(self, number: int) -> dict[str, Any]:
        made = passed(self._vlm, self._passes[number])
        return {"pass": made, "labels": made.ids, "shift_labels": made.ids}  # whose number the Trainer counts


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    (one,) = items
    return one


class _Trainer(Trainer):
    """The Trainer over our passes, with our loss."""

    def __init__(self, vlm: VLM, runner: Any, plan: TrainingPlan, arguments: TrainingArguments) -> None:
        self._vlm, self._runner, self._plan, self._still = vlm, runner, plan, frozen_counters(runner)
        super().__init__(runner, arguments, train_dataset=_Passes(vlm, plan.passes), eval_dataset=_Passes(vlm, ()))
        self.model_accepts_loss_kwargs = True  # the loss is over all tokens of a step, whatever its passes hold
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The passes in their order, on several cards in turn."""
        given = DataLoader(_Passes(self._vlm, self._plan.passes), batch_size=1, collate_fn=_only)
        made: DataLoader[Any] = self.accelerator.prepare(given)
        return made

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The share of one pass in the loss of its step."""
        one = inputs["pass"]
        for module in self._still:
            module.eval()  # the Trainer puts every part into training
        loss = summed_loss(trained_logits(self._vlm, model, one), one)
        if not all(pack.visual for pack in one.batch.packs):  # words alone may reach no projector, no tower
            loss = loss + 0.0 * sum(each.sum() for each in self._runner.parameters() if each.requires_grad)
        count = len(one.ids) if num_items_in_batch is None else num_items_in_batch
        return loss * self.accelerator.num_processes / count  # gradients of several cards are averaged

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """What was held out, predicted."""
        self._runner.eval()
        with self.compute_loss_context_manager():
            found = prediction(self._vlm, self._runner, self._plan.held_out)
        told = {"eval_loss": found.loss, "eval_exact": found.exact}
        self.log(told)
        return told


def _trained(runner: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All that training changes: weights that want gradients, and what counts while it trains."""
    kept = runner.state_dict().keys()
    yield from ((name, value) for name, value in runner.named_parameters() if value.requires_grad)
    yield from ((name, value) for name, value in runner.named_buffers() if name in kept)


class _Keeping(TrainerCallback):
    """Tells how it goes, and says when a checkpoint is whole."""

    def __init__(self, runner: Any, last: Path | None, tell: Callable[[dict[str, float]], None] | None) -> None:
        self._runner, self._last, self._tell, self._kept = runner, last, tell, time.monotonic()
        self._known: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The weights of the last checkpoint: the Trainer looks for them by names that not every model has in memory.

        Raises:
            BadFile: it holds others than are trained.
        """
        if self._last is None:
            return
        stored, held = load_file(self._last / _WEIGHTS), dict(_trained(self._runner))
        if odd := sorted(stored.keys() ^ held.keys()):
            raise BadFile(f"{self._last} is of another run: {odd[0]} is trained in one of them only")
        with torch.no_grad():
            for name, value in held.items():
                value.copy_(stored[name])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self._known |= {name: value for name, value in (logs or {}).items() if isinstance(value, float)}
        if not math.isfinite(self._known.get("loss", 0.0)):
            raise NotANumber(f"the loss is {self._known['loss']} at step {state.global_step}; give a smaller lr")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size == 1 and time.monotonic() - self._kept > _KEPT_SECONDS:
            control.should_save = True
        if self._tell is not None and state.is_world_process_zero:
            self._tell({**self._known, "step": state.global_step})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._kept = time.monotonic()
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            weights = {name: value.detach().contiguous() for name, value in _trained(self._runner)}
            save_file(weights, checkpoint / _WEIGHTS)
            (checkpoint / _WHOLE).write_text(json.dumps(_lengths(checkpoint)))


def in_bf16(vlm: VLM) -> Any:
    """What the Trainer's passes run under, for those outside of it."""
    kind = vlm.model.device.type
    return torch.autocast(kind, torch.bfloat16, enabled=vlm.model.dtype == torch.bfloat16)
