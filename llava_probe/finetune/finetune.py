"""Fine-tuning that cannot silently do nothing, in the two stages of LLaVA's own training.

    lp.finetune("captions.jsonl", "llava-hf/llava-1.5-7b-hf", out="aligned/", stage="align", dtype="bfloat16")
    lp.finetune("questions.jsonl", "llava-hf/llava-1.5-7b-hf", out="tuned/", adapter="aligned/", dtype="bfloat16")
    vlm = lp.load("llava-hf/llava-1.5-7b-hf", adapter="tuned/")

Before the first step every row is read: what cannot be trained on is listed with its line. After the last one the
adapter must have moved the logits of a row that is kept beside it, and give them again when it is loaded.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from llava_probe.asking.identity import model_of
from llava_probe.border import Count, Portion, Positive, Seed, checked
from llava_probe.errors import BadInput, BadModel
from llava_probe.features.packing import refusal
from llava_probe.features.packs import AskingSettings
from llava_probe.features.samples import digest
from llava_probe.features.trial import sharing_of
from llava_probe.finetune import record
from llava_probe.finetune.conversations import Fault, read_conversations
from llava_probe.finetune.dry_run import DryRun, rehearsed
from llava_probe.finetune.parts import trained_parts
from llava_probe.finetune.passes import passed, prediction, trained_logits
from llava_probe.finetune.plan import StepSettings, TrainingPlan, picture_bytes, planned
from llava_probe.finetune.plan import split as split_rows
from llava_probe.finetune.result import Finetuned
from llava_probe.finetune.rows import RowMaker, TrainingRow
from llava_probe.finetune.training import in_bf16, this_process, writing_run
from llava_probe.finetune.training import train as run
from llava_probe.finetune.tuned import keep, made_trainable, rank_of
from llava_probe.inside import seam
from llava_probe.loading import load, look, refuse_settings
from llava_probe.loading.check_row import verify_row, write_check_row
from llava_probe.loading.last_logits import SAME_LOGITS, last_logits, logits_apart, without_adapter
from llava_probe.loading.merging import merged_as_unmerged
from llava_probe.model import VLM
from llava_probe.smol import shipped_name
from llava_probe.stored import write_text

#: Highest learning rate by what is trained: LLaVA-1.5's for its projector and its LoRA, and for all weights.
LR = {"projector": 1e-3, "adapter": 2e-4, "everything": 2e-5}

#: Bad rows that a refusal lists.
_LISTED = 12

#: Rows that are looked at to find out what may share a pass.
_TRIED = 64

#: The folder of checkpoints inside the run's; gone when the run is finished.
CHECKPOINTS = "checkpoints"


@checked
def finetune(
    data: Any,
    model: VLM | str | Path | None = None,
    out: str | Path | None = None,
    *,
    stage: str = "instruct",
    train: str | Sequence[str] | None = None,
    adapter: str | Path | None = None,
    question: str | None = None,
    columns: Mapping[str, Any] | None = None,
    images: str | Path | None = None,
    split: str | None = None,
    held_out: Portion = 0.05,
    epochs: Count = 1,
    steps: Count | None = None,
    batch_size: Count = 16,
    micro_batch: Count | None = None,
    lr: Positive | None = None,
    rank: Count | None = None,
    max_length: Count | None = None,
    checkpointing: bool = False,
    seed: Seed = 0,
    skip_bad: bool = False,
    dry_run: bool = False,
    progress: bool = False,
    **load_kwargs: Any,
) -> Finetuned | DryRun:
    """Train a model on pictures, questions and answers; the loss is on the answers and their ends alone.

    The same call again goes on where it was broken off, and ends with the weights of an undisturbed run.

    Args:
        data: a .jsonl, .json, .csv or .parquet file, a Hugging Face data set or dicts: picture, question and answer;
            LLaVA's conversations; messages; ShareGPT. One format throughout.
        model: its name or folder for ``lp.load``, or a ``VLM``, which is given back as it was.
        out: the folder of the adapter; with ``train="everything"`` of the whole model.
        stage: ``"align"`` trains the projector, ``"instruct"`` a LoRA of the language model.
        train: other parts instead: ``"projector"``, ``"language"``, ``"tower"``, several with commas between them, or
            ``"everything"``.
        adapter: of an earlier stage, to start from; what it trained stays in the new one.
        question: for rows that have none, captions say.
        columns, images, split: as ``lp.extract`` takes them.
        held_out: share of the pictures whose rows are only measured, below 1.
        epochs: how often each row is seen; ``steps`` of the optimizer instead.
        batch_size: rows a step, on all cards together; ``micro_batch`` of them in a pass.
        lr: highest learning rate: 1e-3 for the projector alone, 2e-4 with a LoRA, 2e-5 for everything by default.
        rank: of the LoRA; 16, or that of the adapter that it starts from.
        max_length: tokens of a row at most; what is longer is a bad row, nothing is cut.
        checkpointing: compute activations again instead of keeping them: less memory, a third more time.
        seed: of the order, of what is held out, and of the LoRA's first weights.
        skip_bad: go past rows that cannot be trained on, instead of refusing the data.
        dry_run: train nothing; tell the first row token by token, and the memory and time that a run needs.
        progress: show a bar with loss, rate and time left.
        **load_kwargs: passed to ``lp.load``: ``dtype``, ``device_map``, ``quantize`` ...

    Returns:
        ``Finetuned``; with ``dry_run`` a ``DryRun``, which prints.

    Raises:
        BadInput: bad rows (each with its line and reason), another run in the folder, or settings that don't fit.
        BadModel: it has no such part, there is no such adapter, or the training moved nothing.
    """
    if find_spec("peft") is None:
        raise BadInput("finetune needs PEFT: pip install 'llava_probe[finetune]'")
    parts = trained_parts(train, stage)
    if held_out == 1:
        raise BadInput("held_out=1 leaves nothing to train on")
    if out is None and not dry_run:
        raise BadInput("say where the adapter goes: out='FOLDER' (or dry_run=True, which writes nothing)")
    refuse_settings(model, load_kwargs)
    if adapter is not None:
        look(adapter=adapter, **load_kwargs)  # what lies there, before the model is loaded
    cards = this_process()
    vlm, adapter = (model, adapter) if isinstance(model, VLM) else _loaded(model, adapter, load_kwargs)
    _check_dtype(vlm, parts)
    conversations = read_conversations(data, question=question, columns=columns, images=images, split=split)
    if progress:
        print(*conversations.told, sep="\n", file=sys.stderr)
    rows, faults = RowMaker(vlm, max_length)(conversations)
    left_out = _left_out(rows, faults, skip_bad=skip_bad)
    kept, apart = split_rows(rows, held_out, seed)
    taken = {"epochs": epochs, "steps": steps, "lr": lr or _lr(parts), "seed": seed}
    way = StepSettings.on(cards.num_processes, batch_size, micro_batch, **taken)
    samples = [row.sample for row in kept[:_TRIED]]
    sharing = sharing_of(vlm, samples, AskingSettings(), unpacked=refusal(vlm.anatomy), batch_size=way.pass_rows)
    plan = planned(kept, apart, sharing, way, cards.num_processes)
    ways: dict[str, Any] = {"start": adapter, "rank": rank, "seed": seed, "checkpointing": checkpointing}
    with made_trainable(vlm, parts, **ways) as runner:
        _check_reached(vlm, runner, kept)
        if dry_run:
            return rehearsed(vlm, runner, kept, plan, left_out)
        settings = {
            "model": model_of(vlm.anatomy, vlm.anatomy.model, in_full=True),
            "data": digest(row.sample for row in rows),
            "pictures": picture_bytes(rows),
            "parts": list(parts),
            "adapter": None if adapter is None else str(adapter),
            "rank": rank_of(runner),
            "processes": cards.num_processes,
            "held_out": held_out,
            "sharing": asdict(sharing),
            **asdict(way),
        }
        folder = Path(str(out)).expanduser()
        with record.alone_in(folder, first=cards.is_main_process):
            with cards.main_process_first():
                done = record.begin_run(folder, settings)
            if fresh := done is None:
                done = _run(vlm, runner, plan, way, folder, shown=_shown(kept), progress=progress)
                done |= {"parts": list(parts), "rows": len(kept), "trained": sum(row.trained for row in kept)}
            result = Finetuned(folder=folder, left_out=left_out, **{**done, "parts": parts})
            if fresh and cards.is_main_process:
                write_text("card of the adapter", folder / "README.md", result.card(_named(vlm)))
                record.finish_run(folder, done)
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return result


def _loaded(
    model: str | Path | None, adapter: str | Path | None, settings: Mapping[str, Any]
) -> tuple[VLM, str | Path | None]:
    """A model by its name, where it is trained, and the adapter that it starts from: its own, where it is one."""
    found = look(model, **settings)
    vlm = load(found.where, **settings)
    if settings.get("device_map") is None and settings.get("quantize") is None:
        vlm.model.to(this_process().device)
    return vlm, adapter or found.adapter


def _shown(rows: Sequence[TrainingRow]) -> TrainingRow:
    """The row that is kept to be checked: one with a picture, where there is one."""
    return next((row for row in rows if row.visual), rows[0])


def _check_reached(vlm: VLM, runner: Any, rows: Sequence[TrainingRow]) -> None:
    """Something of what is trained is reached by the loss of a row.

    Raises:
        BadModel: nothing is, and no step would change anything.
    """
    row, name = _shown(rows), type(vlm.anatomy.model).__name__
    with in_bf16(vlm):
        reached = trained_logits(vlm, runner, passed(vlm, [[row]])).requires_grad
    if not reached:
        why = "its pictures become words of its vocabulary before" if row.visual else "no row has a picture"
        raise BadModel(f"no gradient reaches what is to be trained of {name}: {why}; train its language model")


def _named(vlm: VLM) -> str:
    name = seam.checkpoint(vlm.anatomy.model.config)
    return shipped_name(name) or name


def _run(
    vlm: VLM, runner: Any, plan: TrainingPlan, way: StepSettings, folder: Path, *, shown: TrainingRow, progress: bool
) -> dict[str, Any]:
    """Train, keep what was trained, and prove that it acts: what the record tells of it.

    Raises:
        BadModel: no logit moved.
    """
    inputs = dict(passed(vlm, [[shown]]).batch.inputs)
    with in_bf16(vlm):
        start = last_logits(runner, inputs)
    whole = not hasattr(runner, "peft_config")
    with nullcontext() if whole else without_adapter(runner):
        base = start if whole else last_logits(runner, inputs)
    held = [{"step": 0, **_measured(vlm, runner, plan)}] if plan.held_out else []
    with tqdm(total=plan.steps, unit="step", disable=None if progress else True) as bar:

        def tell(known: dict[str, float]) -> None:
            bar.update(int(known["step"]) - bar.n)
            if "loss" in known:
                bar.set_postfix_str(f"loss {known['loss']:.3f}" + _held(known))

        log = run(vlm, runner, plan, folder / CHECKPOINTS, lr=way.lr, seed=way.seed, tell=tell)
    runner.eval()
    with in_bf16(vlm):
        learnt = logits_apart(last_logits(runner, inputs), start)
    if learnt <= SAME_LOGITS:
        raise BadModel("the logits of the check row are as they were before: training changed nothing")
    inputs = {
        name: value.to(vlm.model.device) if isinstance(value, Tensor) else value for name, value in inputs.items()
    }
    if this_process().is_main_process:
        with writing_run(folder):
            keep(vlm, runner, folder)
        write_check_row(runner, inputs, folder, base=base if whole else None)
        verify_row(runner, folder)
    names = {"step": "step", "eval_loss": "loss", "eval_exact": "exact"}
    later = {entry["step"]: entry for entry in log if "eval_loss" in entry}  # the last step is measured twice
    held += [{ours: entry[name] for name, ours in names.items()} for entry in later.values()]
    losses = [{name: entry[name] for name in ("step", "loss", "learning_rate")} for entry in log if "loss" in entry]
    moved = logits_apart(last_logits(runner, inputs), base)
    proved = {"moved": moved, "merged": None if whole else _merged(runner, inputs)}
    return {"losses": losses, "held_out": held, **proved}


def _merged(runner: Any, shown: Mapping[str, Any]) -> float | None:
    """How far the logits of the check row are off when the adapter is merged; a warning where it cannot be."""
    try:
        return merged_as_unmerged(runner, shown)
    except BadModel as error:
        warnings.warn(f"this adapter is to be used beside the weights, not merged into them: {error}", stacklevel=2)
        return None


def _measured(vlm: VLM, runner: Any, plan: TrainingPlan) -> dict[str, float]:
    with in_bf16(vlm):
        found = prediction(vlm, runner, plan.held_out)
    return {"loss": found.loss, "exact": found.exact}


def _held(known: Mapping[str, float]) -> str:
    return f", held out {known['eval_loss']:.3f}, {known['eval_exact']:.0%} exact" if "eval_loss" in known else ""


def _check_dtype(vlm: VLM, parts: Sequence[str]) -> None:
    """The numbers in which weights can be trained.

    Raises:
        BadInput: float16, or all of a model in bfloat16.
    """
    name = str(vlm.model.dtype).removeprefix("torch.")
    if name == "float16":
        raise BadInput("the model is in float16, whose gradients overflow; load it with dtype='bfloat16'")
    if "everything" in parts and name != "float32":
        told = f"train='everything' changes weights in {name}, where small steps vanish"
        raise BadInput(f"{told}; load the model with dtype='float32'")


def _left_out(rows: Sequence[TrainingRow], faults: Sequence[Fault], *, skip_bad: bool) -> tuple[str, ...]:
    """The bad rows, each in a sentence, where they are to be gone past.

    Raises:
        BadInput: there are some and nobody said so, or there are no others.
    """
    told = tuple(map(str, faults))
    if told and (not rows or not skip_bad):
        listed = "\n  ".join(told[:_LISTED])
        more = f"\n  and {len(told) - _LISTED:,} more" if len(told) > _LISTED else ""
        way = "\nskip_bad=True (--skip-bad) goes on without them" if rows else ""
        raise BadInput(f"{len(told):,} rows cannot be trained on, {len(rows):,} can:\n  {listed}{more}{way}")
    if not rows:
        raise BadInput("the data has no rows")
    return told


def _lr(parts: Sequence[str]) -> float:
    return LR["everything" if "everything" in parts else "projector" if parts == ("projector",) else "adapter"]
