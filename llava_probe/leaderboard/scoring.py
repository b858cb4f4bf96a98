"""Runs every entry of the leaderboard over a data set of cases and writes down what each map scored.

    score_cases(vlm, cases, "scores/")                    # picks up where it was stopped
    score_cases(vlm, cases, "scores/", part=(2, 8))       # the second of eight shares, on another machine

One line of JSON a question, with every entry's scores, appended when it is finished: a run that is cut off loses the
question that it was at. A question is scored where the model answers it right; the same question about a blank picture
is asked too, since an answer that needs no picture has no right place.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from llava_probe.asking.decoding import GREEDILY
from llava_probe.attribution import explained_by, prepared
from llava_probe.attribution.engine.perturbing import picture_scores, token_scores
from llava_probe.attribution.engine.target import Task
from llava_probe.attribution.occlusion import blank
from llava_probe.errors import BadFile, BadInput, ProbeError
from llava_probe.evaluate.baselines import centre_prior, edges, of_another, random
from llava_probe.evaluate.cases import Case
from llava_probe.evaluate.energy import energy_inside
from llava_probe.evaluate.faithfulness import deletion_insertion
from llava_probe.evaluate.overlap import iou
from llava_probe.evaluate.pointing import pointing, touches
from llava_probe.evaluate.precision import average_precision
from llava_probe.evaluate.randomised import randomised
from llava_probe.evaluate.ranks import agreement
from llava_probe.evaluate.tam import tam_scores
from llava_probe.json_lines import drop_cut_line
from llava_probe.leaderboard.entries import ScoringPlan
from llava_probe.leaderboard.lines import read_scores
from llava_probe.leaderboard.run import asked, claim_scores
from llava_probe.maps.maps import ImageMap
from llava_probe.model import VLM
from llava_probe.pictures.images import open_image
from llava_probe.stored import place
from llava_probe.trace.capture import Capture
from llava_probe.trace.explained import ANSWER
from llava_probe.trace.trace import Trace

#: Points of the deletion and insertion curves.
SCORED_STEPS = 14
#: Function words of a description that are explained beside its objects.
FUNCTION_WORD_COUNT = 3
_ROWS = Capture(hidden_states=False, logits=False, scores=False)


def score_cases(
    vlm: VLM,
    cases: Iterable[Case],
    folder: str | Path,
    plan: ScoringPlan | None = None,
    *,
    part: tuple[int, int] = (1, 1),
) -> Path:
    """Score each entry on each case, and append to this part's file in ``folder``.

    Args:
        vlm: the model.
        cases: those of one question next to each other.
        folder: for ``scores-1-of-1.jsonl``; what any part in it holds already is not done again.
        plan: which entries; all of them by default.
        part: which share of the questions, and of how many.

    Returns:
        The file.

    Raises:
        BadInput: no cases, two of one name, one whose mask does not fit its picture, a part that is not there, or a
            folder with scores of another model, plan or set of cases.
        BadFile: the folder cannot be written to, or what it holds is damaged.
    """
    plan = plan or ScoringPlan()
    number, parts = part
    if not 1 <= number <= parts:
        raise BadInput(f"part= takes (1, n) to (n, n); got {part}")
    target = place("folder of scores", folder)
    groups = [list(group) for _, group in groupby(cases, key=lambda case: (case.picture, case.asking))]
    if not groups:
        raise BadInput("there are no cases to score")
    names = [case.id for group in groups for case in group]
    if len(set(names)) < len(names):
        raise BadInput(f"two cases have the id {next(name for name in names if names.count(name) > 1)!r}")
    mine = list(enumerate(groups))[number - 1 :: parts]
    questions = {group[0].id: asked(group) for _, group in mine}
    path = target / f"scores-{number}-of-{parts}.jsonl"
    try:
        target.mkdir(parents=True, exist_ok=True)
        claim_scores(target, vlm, plan)
        if path.exists():
            drop_cut_line("file of scores", path)
        done = {line["question"]: line.get("asked") for line in read_scores(sorted(target.glob("scores-*.jsonl")))}
        if other := [name for name, digest in questions.items() if done.get(name, digest) != digest]:
            raise BadInput(
                f"{target} holds scores of another question, word or mask named {other[0]!r}; give another folder"
            )
        with path.open("a", encoding="utf-8") as file:
            for index, group in tqdm(mine, desc=f"part {number} of {parts}", unit="question", disable=None):
                if group[0].id in done:
                    continue
                line = _scored(vlm, group, index, plan, groups[index - 1])
                line["asked"] = questions[group[0].id]
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
    except OSError as error:
        if isinstance(error, ProbeError):
            raise
        raise BadFile(f"the scores could not be written to {target}: {error}") from error
    return path


def _scored(vlm: VLM, group: Sequence[Case], index: int, plan: ScoringPlan, another: Sequence[Case]) -> dict[str, Any]:
    """One question's line; ``another`` is the question whose attention stands for another picture's."""
    first = group[0]
    image = open_image(first.image)
    trace = vlm.generate(image, **first.asking, capture=_ROWS, **GREEDILY)
    found, told = spans_of(trace, group)
    line: dict[str, Any] = {
        "question": first.id,
        "picture": first.picture,
        "kind": first.kind,
        "answer": trace.answer,
        "right": bool(found),
        "blind": bool(found) and _blind(vlm, image, first, trace),
        "cases": [case.id for case in group],
    }
    if not found:
        return line
    spans = [list(span) for span in dict.fromkeys(map(tuple, found))]  # a word with two right places is explained once
    rows = [spans.index(span) for span in found]
    task = prepared(vlm, trace, "attention", tokens=spans)
    maps, line["entries"] = _maps(task, plan)
    like = maps.get("attention") or next(iter(maps.values()))
    maps |= {"centre prior": centre_prior(like), "edges": edges(like), "random": random(like, seed=index)}
    if another[0].picture != first.picture:
        maps["attention of another picture"] = of_another(_attention(vlm, another[0]), like)
    maps |= {name: made(task, group) for name, made in plan.own.items()}
    placed = list(zip(rows, (case.mask() for case in group), strict=False))
    masks = [mask for _, mask in placed]
    for name, m in maps.items():
        line["entries"].setdefault(name, {})["cases"] = [_judged(m, mask, row) for row, mask in placed]
        if len(told):
            words = tam_scores(m, dict(placed), rows[len(masks) :])
            line["entries"][name]["tam"] = [words.obj_iou, words.func_iou]
    if index < plan.closer and not len(told):
        _look_closer(vlm, trace, spans, maps, masks[0], line)
    if index < plan.random and not len(told):
        line["random"] = _on_a_random_model(vlm, trace, spans, plan, placed)
    return line


def _attention(vlm: VLM, case: Case) -> ImageMap:
    """Attention of a whole answer, right or not."""
    trace = vlm.generate(open_image(case.image), **case.asking, capture=_ROWS, **GREEDILY)
    return explained_by(prepared(vlm, trace, "attention", tokens=ANSWER), "attention")


def spans_of(trace: Trace, group: Sequence[Case]) -> tuple[list[list[int]], list[str]]:
    """Positions of each case's word, then of the function words; none where the answer is not right."""
    first = group[0]
    if first.answer is not None and trace.answer.strip(" .").casefold() != first.answer.strip(" .").casefold():
        return [], []
    spans = []
    for case in group:
        if case.token is not None:
            found: Sequence[int] = [trace.prompt_length + case.token]
        else:
            found = trace.find(case.word or trace.answer, role="generated", occurrence=case.occurrence or 0)
        if not found or found[-1] >= len(trace.tokens):
            return [], []
        spans.append(list(found))
    said = [word for word in first.function_words if trace.find(word, role="generated", occurrence=0)]
    told = said[:FUNCTION_WORD_COUNT]
    return spans + [list(trace.find(word, role="generated", occurrence=0)) for word in told], told


def _blind(vlm: VLM, image: Image.Image, case: Case, trace: Trace) -> bool:
    """Whether the same is answered about a grey picture."""
    grey = Image.new("RGB", image.size, (127, 127, 127))
    return vlm.generate(grey, **case.asking, capture=_ROWS, **GREEDILY).answer == trace.answer


def _maps(task: Task, plan: ScoringPlan) -> tuple[dict[str, ImageMap], dict[str, dict[str, Any]]]:
    maps: dict[str, ImageMap] = {}
    told: dict[str, dict[str, Any]] = {}
    for name, entry in plan.runs():
        started = time.perf_counter()
        try:
            maps[name] = explained_by(task, entry.method, plan.options(entry))
        except ProbeError as error:  # a method that this model cannot be explained by: the table says why
            told[name] = {"refused": str(error)}
            continue
        about = maps[name].about
        seconds = (time.perf_counter() - started) / len(task.targets)
        told[name] = {"seconds": seconds, "forwards": about["forwards"], "backwards": about["backwards"]}
    if not maps:
        raise BadInput("no entry could be run: " + "; ".join(each["refused"] for each in told.values()))
    return maps, told


def _judged(m: ImageMap, mask: np.ndarray, row: int) -> dict[str, float]:
    return {
        "touches": float(touches(m, mask, row)),
        "inside": float(pointing(m, mask, row)),
        "precision": average_precision(m, mask, row),
        "energy": energy_inside(m, mask, row),
        "iou": iou(m, mask, row).iou,
        "otsu": iou(m, mask, row, threshold="otsu").iou,
    }


def _look_closer(
    vlm: VLM,
    trace: Trace,
    spans: list[list[int]],
    maps: Mapping[str, ImageMap],
    mask: np.ndarray,
    line: dict[str, Any],
) -> None:
    for name, m in maps.items():
        curves = deletion_insertion(vlm, trace, m, steps=SCORED_STEPS, tokens=spans, row=0)
        line["entries"][name] |= {
            "deletion": float(curves.deletion_auc[0]),
            "insertion": float(curves.insertion_auc[0]),
        }
    like = next(iter(maps.values()))
    removed = _removed(vlm, trace, spans, mask)
    if removed is not None:
        line["removal"] = removed
    alike = agreement({name: _on_tokens(m, like) for name, m in maps.items()}, row=0)
    line["agreement"] = {"names": list(alike.names), "values": np.round(alike.values, 4).tolist()}


def _on_tokens(m: ImageMap, like: ImageMap) -> ImageMap:
    """A map with a finer layout as its mean over each visual token's box."""
    if len(m.layout) == len(like.layout):
        return m
    values = np.stack([like.layout.to_tokens(m.pixels(row)) for row in range(len(m))])
    return replace(like, values=torch.from_numpy(values), method=m.method, about=m.about)


def _removed(vlm: VLM, trace: Trace, spans: list[list[int]], mask: np.ndarray) -> dict[str, float] | None:
    """The word's probability with the right place taken away, alone, and with as many other tokens taken away.

    What a method on visual tokens can find at best: a tower may carry what it saw of an object to other tokens.
    Nothing where there are fewer others than tokens of the right place.
    """
    task = prepared(vlm, trace, "occlusion", tokens=spans, of="logprob")
    own = torch.from_numpy(task.layout.to_tokens(mask) > 0)
    others = (~own).nonzero().flatten()
    if len(others) < int(own.sum()):
        return None
    drawn = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[: int(own.sum())]]
    elsewhere = torch.zeros_like(own)
    elsewhere[drawn] = True
    kept = torch.stack([torch.ones_like(own), ~own, own, ~elsewhere]).float()
    tokens = token_scores(task, kept)[:, 0].exp().tolist()
    photograph = trace.images[task.image].convert("RGB")
    hidden = Image.composite(blank(photograph, "mean"), photograph, Image.fromarray(mask))
    names = ("whole", "without its tokens", "its tokens alone", "without others")
    painted = float(picture_scores(task, [hidden])[0, 0].exp())
    return {**dict(zip(names, tokens, strict=True)), "without its pixels": painted}


def _on_a_random_model(
    vlm: VLM, trace: Trace, spans: list[list[int]], plan: ScoringPlan, placed: Sequence[tuple[int, np.ndarray]]
) -> dict[str, Any]:
    """Scores of the same words explained by a model whose language layers are random."""
    with randomised(vlm):
        again = vlm.rerun(trace, answer=[token.id for token in trace.generated], capture=_ROWS)
        maps, _ = _maps(prepared(vlm, again, "attention", tokens=spans), plan)
    return {name: [_judged(m, mask, row) for row, mask in placed] for name, m in maps.items()}
