"""Wrong arguments for everything public: each is taken, or refused by an error of ours; never a foreign traceback.

    python tools/fuzz_arguments.py --count 3000 --seed 0   # exit status 1 if anything is foreign, slow or large

Every public function, method and constructor is found by looking; ``bases`` knows the valid arguments of each, made
from the tiny model. One argument at a time is replaced by something nasty. A try may take ten seconds and a gigabyte.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import numpy as np
import torch
from PIL import Image

import llava_probe as lp
from llava_probe import evaluate, figures, tiny
from llava_probe.attribution import find_heads
from llava_probe.finetune.result import Finetuned
from llava_probe.pictures.videos import open_video
from llava_probe.sweeps import AttributionPatching, CausalTrace, DoseResponse, InformationFlow

SECONDS, BYTES = 10, 1_000_000_000
#: What is public for other files of the package, and takes what only they make.
INNER = {"Probe.of", "VLM.prepare", "VLM.layouts_of"}
#: Settings of ``generate`` that are tried too, with a valid value each.
DECODING = {
    "num_beams": 2, "num_return_sequences": 1, "min_length": 1, "min_new_tokens": 1, "max_length": 400,
    "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9, "epsilon_cutoff": 0.001,
    "repetition_penalty": 1.2, "length_penalty": 1.0, "no_repeat_ngram_size": 2, "do_sample": False, "use_cache": True,
    "early_stopping": True, "max_time": 9.0, "stop_strings": ["."], "eos_token_id": 2, "pad_token_id": 0,
    "bad_words_ids": [[5]], "suppress_tokens": [5], "begin_suppress_tokens": [5], "forced_eos_token_id": 2,
    "sequence_bias": {(5,): 1.0}, "exponential_decay_length_penalty": (2, 1.1), "guidance_scale": 1.0,
    "renormalize_logits": True, "remove_invalid_values": True, "cache_implementation": "dynamic",
    "generation_config": None, "logits_processor": [], "stopping_criteria": [], "streamer": None,
    "prefix_allowed_tokens_fn": None, "prefill_chunk_size": 32, "no_such_option": 1, "epsilom_cutoff": 0.1,
}  # fmt: skip


def nasty() -> dict[str, Callable[[], Any]]:
    """Values that nobody should pass, by name; made anew for each try."""
    return {
        "None": lambda: None,
        "True": lambda: True,
        "-1": lambda: -1,
        "0": lambda: 0,
        "1": lambda: 1,
        "1.5": lambda: 1.5,
        "nan": lambda: float("nan"),
        "inf": lambda: float("inf"),
        "-inf": lambda: float("-inf"),
        "1e9": lambda: 10**9,
        "1e30": lambda: 10**30,
        "-1e30": lambda: -(10**30),
        "1e400": lambda: 10**400,
        "empty text": lambda: "",
        "x": lambda: "x",
        "digit": lambda: "0",
        "NUL": lambda: "a\0b",
        "surrogate": lambda: "\ud800",
        "no such user": lambda: "~nobody-here/x",
        "long text": lambda: "x" * 5000,
        "marks": lambda: "<image></s>{}%s\n",
        "bytes": lambda: b"ab",
        "no bytes": lambda: b"",
        "empty list": lambda: [],
        "empty dict": lambda: {},
        "empty tuple": lambda: (),
        "set": lambda: {1, 2},
        "[None]": lambda: [None],
        "[1.5]": lambda: [1.5],
        "['x', 1]": lambda: ["x", 1],
        "[nan]": lambda: [float("nan")],
        "[-1e30]": lambda: [-(10**30)],
        "[[[]]]": lambda: [[[]]],
        "{1: 2}": lambda: {1: 2},
        "object": object,
        "function": lambda: lambda *_, **__: None,
        "class": lambda: ValueError,
        "error": lambda: ValueError("x"),
        "generator": lambda: (each for each in (1, "x", None)),
        "complex": lambda: 1j,
        "slice": lambda: slice(0, 5),
        "nan array": lambda: np.full((2, 3), np.nan),
        "empty array": lambda: np.zeros((0, 3)),
        "0-d array": lambda: np.array(1),
        "huge array": lambda: np.broadcast_to(np.float32(0.5), (100_000, 100_000)),
        "text array": lambda: np.array(["a", "b"]),
        "object array": lambda: np.array([None, object()], dtype=object),
        "bool scalar": lambda: np.bool_(True),
        "float16": lambda: np.float16(0.5),
        "int64": lambda: np.int64(1),
        "complex tensor": lambda: torch.zeros(2, dtype=torch.complex64),
        "meta tensor": lambda: torch.zeros(2, 3, device="meta"),
        "empty tensor": lambda: torch.zeros(0),
        "0-d tensor": lambda: torch.tensor(1),
        "bool tensor": lambda: torch.tensor([True, False]),
        "5-d tensor": lambda: torch.zeros(1, 1, 1, 1, 2),
        "sparse tensor": lambda: torch.zeros(2, 2).to_sparse(),
        "1x1 picture": lambda: Image.new("RGB", (1, 1)),
        "path": lambda: Path("/nowhere/at/all"),
        "device": lambda: Path("/dev/null"),
    }


@dataclass(frozen=True)
class Try:
    """One call: of what, with which valid arguments, and the name of the one that was replaced."""

    name: str
    call: Callable[..., Any]
    arguments: Mapping[str, Any]
    replaced: str
    by: str

    def __str__(self) -> str:
        return f"{self.name}({self.replaced}={self.by})"


@cache
def world() -> dict[str, Any]:
    """One of each thing that arguments are made of."""
    vlm, scene = lp.load(), tiny.scene(34)
    trace = vlm.generate(scene.image, "Describe the image.", max_new_tokens=4, capture=lp.Capture(positions="all"))
    mask = np.zeros((scene.image.height, scene.image.width), dtype=bool)
    mask[40:200, 40:200] = True
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    instances = {"images": [{"id": 1}], "annotations": [{"image_id": 1, "category_id": 1}],
                 "categories": [{"id": 1, "name": "dog"}]}  # fmt: skip
    (folder / "instances.json").write_text(json.dumps(instances))
    rows = [{"image": tiny.scene(n).image, "question": "What?", "colour": ("red", "blue")[n % 2]} for n in range(12)]
    features = lp.extract(vlm, rows, folder / "features", layers=[1], positions=["last_prompt", "text"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sweep = lp.fit_probe(features, "colour", positions="last_prompt", folds=3, bootstrap=10, draws=1)
    m = lp.attention_map(trace)
    bank = lp.word_bank(vlm, ["There is a red star."], folder / "bank", layers=[1])
    (key,) = sweep.cells
    fitting = {"layers": [1], "steps": 1, "batch_size": 2, "tokens": 4, "held_out": 0.5}
    return {
        "vlm": vlm, "scene": scene, "image": scene.image, "trace": trace, "m": m, "mask": mask, "folder": folder,
        "bank": bank, "nearest": bank.words(trace, layer=1),
        "rows": rows[:1], "features": features, "sweep": sweep, "key": key, "probe": sweep.probe(*key),
        "confidence": lp.confidence(trace), "heads": lp.heads(trace), "sinks": lp.sinks(trace),
        "written": lp.written_by(vlm, trace),
        "case": next(iter(evaluate.tiny_cases([34]))), "layout": trace.layouts[0],
        "hidden": trace.hidden(layer=1, at=lp.LAST), "ragged": features["layer_1", "text"],
        "found": find_heads(vlm, [(scene.image, "What?")], validation=0.0), "agreement": evaluate.agreement({"a": m}),
        "overlap": evaluate.iou(m, mask), "curve": evaluate.pr_curve(m, mask), "token": trace.tokens[0],
        "asked": vlm.generate(scene.image, "What?", max_new_tokens=1, capture=lp.Capture(positions="prompt")),
        "direction": lp.Direction(torch.ones(vlm.anatomy.width)), "region": lp.Region((40, 40, 200, 200)),
        "score": evaluate.summary([1.0, 0.0], ["a", "b"], times=5), "picked": trace.save(folder / "a.trace"),
        "calibration": lp.calibration([0.2, 0.4, 0.9], [0, 1, 1], times=5, draws=5),
        "told": lp.hallucination(vlm, trace, ["red", "a", "there", "is", "stop"]),
        "calibrator": lp.fit_calibrator([0.2, 0.4, 0.6, 0.9] * 9, [0, 1, 0, 1] * 9, of=trace, kind="platt"),
        "compared": lp.compare(trace, trace),
        "models_compared": lp.compare_models(vlm, vlm, rows[:1], unrelated=rows[:1], max_new_tokens=1, progress=False),
        "lens": lp.lens(vlm, trace, layers=[1], words="red"),
        "tuned_lens": lp.fit_lens(vlm, rows[:4], folder / "lens", **fitting),
        **_drawn(),
    }  # fmt: skip


def bases() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Every public callable with valid arguments; what is not listed by hand is made from its own fields."""
    w = world()
    vlm, image, trace, m, mask = w["vlm"], w["image"], w["trace"], w["m"], w["mask"]
    folder: Path = w["folder"]
    asked: dict[str, Any] = {"image": image, "question": "What?"}
    short = {**asked, "max_new_tokens": 2}
    judged = {"vlm": vlm, "trace": trace, "m": m, "row": 0, "image": 0, "tokens": None, "contrast": None,
              "on": "tokens", "baseline": "mean", "batch": 4, "seed": 0}  # fmt: skip
    drawn = {"ax": None, "width": "page", "title": "a title"}
    panel = {**drawn, "bar": True}
    pictured = {"trace": trace, "image": 0, "tokens": lp.LAST, "layers": [0], "heads": [0]}
    each: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "lp.VLM": (lp.VLM, {"model": vlm.model, "processor": vlm.processor, "layout": "auto"}),
        "lp.load": (lp.load, {"name": "tiny", "random_weights": None}),
        "lp.check": (lp.check, {"vlm": vlm, "image": image, "question": "What?", "max_new_tokens": 2}),
        "lp.open_image": (lp.open_image, {"source": image, "allow_private": False}),
        "open_video": (open_video, {"source": [image, image]}),
        "lp.confidence": (lp.confidence, {"trace": trace}),
        "lp.attention_map": (lp.attention_map, {**pictured, "reduce": "mean", "sinks": "keep", "relative_to": None}),
        "lp.rollout": (lp.rollout, {"trace": _whole(), "image": 0, "tokens": lp.LAST, "layers": [0], "heads": [0],
                                    "reduce": "mean"}),
        "lp.heads": (lp.heads, {"trace": trace, "tokens": lp.LAST, "mask": mask, "image": 0}),
        "lp.sinks": (lp.sinks, {"trace": trace, "image": 0, "threshold": 20.0}),
        "lp.written_by": (lp.written_by, {"vlm": vlm, "trace": trace, "token": -1, "contrast": "red"}),
        "lp.knock_out": (_entered(lp.knock_out), {"vlm": vlm, "keys": "image", "queries": "last", "layers": [0],
                                                   "heads": [0], "uniform": False, "phase": "both",
                                                   "allow_nothing": False}),
        "lp.knock_out, keep": (_entered(lp.knock_out), {"vlm": vlm, "keep": "image", "queries": "last"}),
        "lp.reweight": (_entered(lp.reweight), {"vlm": vlm, "keys": "image", "by": 0.2, "queries": "last",
                                                "how": "logits", "layers": [0], "heads": [0], "phase": "both"}),
        "lp.ablate": (_entered(lp.ablate), {"vlm": vlm, "tokens": lp.Region((40, 40, 200, 200)), "with_": "mean",
                                            "ring": 0, "phase": "both", "seed": 0, "allow_nothing": True}),
        "lp.ablate, heads": (_entered(lp.ablate), {"vlm": vlm, "heads": {1: [0]}, "with_": "zero", "at": "last"}),
        "lp.ablate, mlp": (_entered(lp.ablate), {"vlm": vlm, "mlp": [1]}),
        "lp.ablate, layers": (_entered(lp.ablate), {"vlm": vlm, "layers": 1}),
        "lp.patch": (_entered(lp.patch), {"vlm": vlm, "source": w["asked"], "at": "last", "layers": [1],
                                          "part": "head", "heads": [0], "align": "name", "phase": "both"}),
        "lp.steer": (_entered(lp.steer), {"vlm": vlm, "direction": w["direction"], "layers": [1], "scale": 1.0,
                                          "at": "last", "project_out": False, "random": None, "phase": "both"}),
        "lp.Direction": (lp.Direction, {"vector": torch.ones(192), "about": {}}),
        "Direction.random": (w["direction"].random, {"seed": 0}),
        "Direction.of_probe": (lp.Direction.of_probe, {"probe": w["probe"], "label": w["probe"].classes[0]}),
        "Direction.of_word": (lp.Direction.of_word, {"vlm": vlm, "word": "red"}),
        "Direction.between": (lp.Direction.between, {"positive": [trace], "negative": [trace, w["asked"]], "layer": 1,
                                                     "at": lp.LAST, "method": "mean"}),
        "Direction.of_features": (lp.Direction.of_features, {
            "features": w["features"], "what": "layer_1", "position": "last_prompt", "column": "colour", "value": "red",
            "against": None, "method": "mean"}),
        "lp.Region": (_found_in(trace), {"where": (40, 40, 200, 200), "image": 0, "ring": 1, "box_format": "xyxy"}),
        "Region.mask": (w["region"].mask, {"size": (336, 336)}),
        "Region.tokens": (w["region"].tokens, {"layout": w["layout"]}),
        "ImageLayout.around": (w["layout"].around, {"tokens": [3], "ring": 1}),
        "lp.information_flow": (lp.information_flow, {
            "vlm": vlm, "samples": [(image, "What?")], "edges": ["image->last"], "window": 1, "layers": [0],
            "controls": False, "answer": None, "against": None, "folder": None, "seed": 0}),
        "lp.causal_trace": (lp.causal_trace, {
            "vlm": vlm, "clean": (image, "What?"), "corrupt": "grey", "groups": {"last": lp.LAST},
            "parts": ["residual"], "layers": [0], "window": 1, "ring": 0, "mode": "denoise", "answer": None,
            "against": None, "folder": None, "seed": 0}),
        "lp.attribution_patching": (lp.attribution_patching, {
            "vlm": vlm, "clean": (image, "What?"), "corrupt": "grey", "parts": ["mlp"], "exact": 0, "ring": 0,
            "answer": None, "against": None, "seed": 0}),
        "lp.dose_response": (lp.dose_response, {
            "vlm": vlm, "direction": w["direction"], "samples": [(image, "What?")], "layers": 1, "scales": [1.0],
            "at": "last", "phase": "both", "random": 0, "max_new_tokens": 1, "answer": None, "against": None,
            "folder": None, "seed": 0}),
        "tiny.counterfactual": (tiny.counterfactual, {"seed": 6, "change": "colour"}),
        "lp.extract": (lp.extract, {
            "vlm": vlm, "samples": w["rows"], "out": "OUT", "layers": [1], "positions": "last_prompt", "question": None,
            "columns": None, "images": None, "split": None, "store_dtype": None, "confidence": False,
            "image_attention": False, "max_new_tokens": None, "batch_size": 1, "shard_rows": 4, "pack": True,
            "strict": False, "engine": "local", "cluster": None, "progress": False}),
        "lp.Features": (lp.Features, {"folder": folder / "features"}),
        "lp.word_bank": (lp.word_bank, {
            "vlm": vlm, "sentences": ["There is a red star."], "out": "OUT", "layers": [1], "column": None,
            "contexts": 5, "most": 50, "batch_size": 1, "progress": False}),
        "WordBank.states": (w["bank"].states, {"layer": 1}),
        "WordBank.rows": (w["bank"].rows, {"word": "red"}),
        "WordBank.similarity": (w["bank"].similarity, {"word": "red", "states": trace.hidden(layer=1, at=lp.IMAGE)}),
        "WordBank.words": (w["bank"].words, {"trace": trace, "layer": 1, "at": lp.IMAGE, "top": 2, "among": ["red"]}),
        "lp.fit_probe": (lp.fit_probe, {
            "features": w["features"], "label": "colour", "layers": "layer_1", "positions": "last_prompt", "kind": None,
            "task": None, "groups": "picture", "types": None, "folds": 3, "seed": 0, "balance": True,
            "strengths": [1.0], "pool": "mean", "draws": 1, "random_features": None, "bootstrap": 5, "memory": 10**9,
            "progress": False}),
        "lp.finetune": (lp.finetune, {
            "data": [{"image": image, "question": "What?", "answer": "red"}], "model": vlm, "out": "OUT",
            "stage": "align", "train": "projector", "adapter": None, "question": None, "columns": None, "images": None,
            "split": None, "held_out": 0.0, "epochs": 1, "steps": 1, "batch_size": 1, "micro_batch": 1, "lr": 1e-3,
            "rank": 1, "max_length": 300, "checkpointing": False, "seed": 0, "skip_bad": False, "dry_run": True,
            "progress": False}),
        "lp.calibration": (lp.calibration, {
            "confidence": [0.2, 0.9], "correct": [0, 1], "groups": ["a", "b"], "bins": 5, "times": 5, "draws": 5,
            "seed": 0}),
        "lp.fit_calibrator": (lp.fit_calibrator, {
            "confidence": [0.2, 0.4, 0.6, 0.9] * 9, "correct": [0, 1, 0, 1] * 9, "of": trace, "kind": "platt",
            "groups": None, "held_out": 0.5, "seed": 0}),
        "lp.multiple_choice": (lp.multiple_choice, {
            "vlm": vlm, "samples": [(image, "What?")], "choices": ["red", "blue"], "letters": True,
            "form": "{question} {options}", "batch_size": 2, "progress": False}),
        "lp.pope": (lp.pope, {
            "questions": [{"image": "a.png", "text": "Is there?", "label": "no"}], "answers": ["no"], "images": None,
            "max_new_tokens": 2, "batch_size": 1, "progress": False}),
        "lp.chair": (lp.chair, {
            "captions": {1: "a dog"}, "instances": folder / "instances.json", "references": None, "synonyms": None,
            "drop_cut": True, "prompt": "Describe.", "max_new_tokens": 9, "decoding": "greedy"}),
        "lp.hallucination": (lp.hallucination, {
            "vlm": vlm, "trace": trace, "objects": list(w["told"].words), "synonyms": None}),
        "lp.signal_table": (lp.signal_table, {
            "found": [w["told"]] * 2, "made_up": [[True] * len(w["told"]), [False] * len(w["told"])],
            "pictures": ["a", "b"], "seed": 0}),
        "Calibrator.load": (lp.Calibrator.load, {"path": w["calibrator"].save(folder / "a.json")}),
        "Calibrator.save": (w["calibrator"].save, {"path": folder / "b.json"}),
        "Calibrator.apply": (w["calibrator"].apply, {"confidence": [0.2, 0.9], "of": trace}),
        "Calibration.accuracy_at": (w["calibration"].accuracy_at, {"coverage": 0.5}),
        "lp.compare": (lp.compare, {"a": trace, "b": trace, "models": vlm, "tokens": lp.ANSWER, "image": 0}),
        "lp.compare_models": (lp.compare_models, {
            "a": vlm, "b": vlm, "samples": w["rows"], "unrelated": w["rows"], "out": "OUT", "max_new_tokens": 1,
            "progress": False, "seed": 0}),
        "lp.lens": (lp.lens, {"vlm": vlm, "trace": trace, "layers": [1, -1], "at": lp.LAST, "top": 2, "words": ["red"],
                              "tuned": w["tuned_lens"]}),
        "lp.fit_lens": (lp.fit_lens, {
            "vlm": vlm, "samples": w["rows"], "out": "OUT", "layers": [1], "question": None, "prompt": None,
            "columns": None, "images": None, "split": None, "answers": None, "system": None, "template_kwargs": None,
            "processor_kwargs": None, "held_out": 0.0, "epochs": 1, "steps": 1, "batch_size": 1, "tokens": 4,
            "lr": 1e-3, "seed": 0, "progress": False}),
        "TunedLens.load": (lp.TunedLens.load, {"folder": w["tuned_lens"].folder}),
        "TunedLens.check": (w["tuned_lens"].check, {"vlm": vlm}),
        "TunedLens.translator": (w["tuned_lens"].translator, {"layer": 1}),
        "TunedLens.translate": (w["tuned_lens"].translate, {"states": w["hidden"][None], "layer": 1, "visual": [True]}),
        "LensReport.curve": (w["tuned_lens"].report.curve, {"kind": "text", "of": "gain"}),
        "Lens.map": (w["lens"].map, {"word": "red", "layer": 1, "image": 0}),
        "Lens.first": (w["lens"].first, {"word": "red", "position": None}),
        "Lens.row": (w["lens"].row, {"layer": 1}),
        "Lens.columns": (w["lens"].columns, {"image": 0}),
        "lp.families": (lp.families, {}),
        "find_heads": (find_heads, {"vlm": vlm, "samples": [(image, "What?")], "most": 1, "tokens": lp.LAST,
                                    "validation": 0.0, "picked": 2}),
        "Trace.load": (lp.Trace.load, {"path": folder / "a.trace"}),
        "Probe.load": (lp.Probe.load, {"path": w["probe"].save(folder / "a.probe")}),
        "ImageMap.words": (m.words, {"row": 0}),
        "ImageMap.starts": (m.starts, {"row": 0}),
        "ImageMap.load": (lp.ImageMap.load, {"path": m.save(folder / "map")[-1]}),
        "evaluate.agreement": (evaluate.agreement, {"maps": {"a": m, "b": m}, "row": 0, "measure": evaluate.spearman}),
        "evaluate.otsu": (evaluate.otsu, {"values": [1.0, 2.0, 9.0], "weights": None}),
        "evaluate.iou": (evaluate.iou, {"m": m, "mask": mask, "row": 0, "threshold": "best"}),
        "evaluate.pointing": (evaluate.pointing, {"m": m, "mask": mask, "row": 0, "tolerance": 1.0}),
        "evaluate.centre_prior": (evaluate.centre_prior, {"like": m, "sigma": 0.25}),
        "evaluate.random": (evaluate.random, {"like": m, "seed": 0}),
        "evaluate.edges": (evaluate.edges, {"like": m}),
        "evaluate.of_another": (evaluate.of_another, {"m": m, "like": m}),
        "evaluate.spearman": (evaluate.spearman, {"one": m, "other": m, "row": 0}),
        "evaluate.top_overlap": (evaluate.top_overlap, {"one": m, "other": m, "row": 0, "k": 3}),
        "evaluate.comprehensiveness": (evaluate.comprehensiveness, {**judged, "shares": [0.5]}),
        "evaluate.sufficiency": (evaluate.sufficiency, {**judged, "shares": [0.5]}),
        "evaluate.deletion_insertion": (evaluate.deletion_insertion, {**judged, "steps": 2}),
        "evaluate.infidelity": (evaluate.infidelity, {
            "vlm": vlm, "trace": trace, "m": m, "row": 0, "image": 0, "tokens": None, "contrast": None, "of": "logprob",
            "baseline": "mean", "samples": 2, "scaled": True, "batch": 2, "seed": 0}),
        "evaluate.sensitivity": (evaluate.sensitivity, {
            "vlm": vlm, "trace": trace, "method": "attention", "image": 0, "tokens": None, "contrast": None, "of": None,
            "radius": 0.02, "samples": 1, "seed": 0, "options": None}),
        "evaluate.randomised": (_entered(evaluate.randomised), {"vlm": vlm, "blocks": 1, "seed": 0}),
        "evaluate.read_cases": (_used_up(evaluate.read_cases), {"path": folder / "cases/cases.jsonl"}),
        "evaluate.write_cases": (evaluate.write_cases, {"cases": [w["case"]], "folder": folder / "cases"}),
        "evaluate.tiny_cases": (_used_up(evaluate.tiny_cases), {"seeds": [3], "kinds": ["colour"]}),
        "evaluate.summary": (evaluate.summary, {"scores": [1.0, 0.0], "pictures": ["a", "b"], "times": 5, "seed": 0}),
        "evaluate.difference": (evaluate.difference, {"one": [1.0, 0.0], "other": [0.0, 0.0], "pictures": ["a", "b"],
                                                      "times": 5, "seed": 0}),
        "evaluate.tam_scores": (evaluate.tam_scores, {"m": m, "objects": {0: mask}, "function": [], "nouns": []}),
        "lp.page": (lp.page, {"results": [trace, m], "path": folder / "page.html"}),
        "figures.maps": (figures.maps, {
            "m": m, "row": 0, "mean": False, "confidence": w["confidence"], "photograph": "under", "scale": "one",
            "columns": 1, "cmap": "heat", "highest": 1.0, **panel}),
        "figures.compare": (figures.compare, {
            "maps": {"a": m, "b": m}, "row": 0, "difference": True, "photograph": "both", "columns": 3,
            "cmap": "viridis", "highest": 1.0, **panel}),
        "figures.head_maps": (figures.head_maps, {
            "trace": trace, "tokens": lp.LAST, "image": 0, "photograph": "none", "scale": "one", "cmap": "heat",
            "highest": 1.0, **panel}),
        "figures.tokens": (figures.tokens, {
            "of": w["confidence"], "row": 0, "by": "entropy", "cmap": "heat", "highest": 1.0, **panel}),
        "figures.confidence": (figures.confidence, {"c": w["confidence"], "columns": 16, "highest": 1.0, **drawn}),
        "figures.layers_heads": (figures.layers_heads, {
            "shares": w["heads"], "of": "image", "row": 0, "cmap": "heat", "highest": 1.0, **panel}),
        "figures.layers": (figures.layers, {
            "shares": [w["heads"]], "of": ["image"], "highest": 1.0, "seed": 0, **drawn}),
        "figures.features": (figures.features, {
            "store": w["features"], "what": w["key"][0], "position": w["key"][1], "by": None, "method": "pca",
            "most": 9, "cmap": None, "highest": 1.0, "seed": 0, **panel}),
        "figures.probes": (figures.probes, {"sweep": w["sweep"], **drawn}),
        "figures.confusion": (figures.confusion, {
            "sweep": w["sweep"], "layer": w["key"][0], "position": w["key"][1], "cmap": "Blues",
            "highest": 1.0, **panel}),
        "figures.information_flow": (figures.information_flow, {"flow": w["flow"], "of": "probability", **drawn}),
        "figures.causal_trace": (figures.causal_trace, {"trace": w["traced"], **drawn}),
        "figures.dose_response": (figures.dose_response, {"dose": w["dose"], **drawn}),
        "figures.attribution_patching": (figures.attribution_patching, {"found": w["patched"], **drawn}),
        "figures.lens": (figures.lens, {"found": w["lens"], **drawn}),
        "figures.words_on": (figures.words_on, {"found": w["lens"], "layer": 1, "image": 0, "tile": 0, **drawn}),
        "figures.tuned_lens": (figures.tuned_lens, {"report": w["tuned_lens"].report, **drawn}),
        "figures.contextual_words": (figures.contextual_words, {
            "found": w["nearest"], "image": 0, "tile": 0, **drawn}),
        "figures.changed": (figures.changed, {"found": w["compared"], **drawn}),
        "figures.models_compared": (figures.models_compared, {"found": w["models_compared"], **drawn}),
        "figures.written": (figures.written, {
            "written": w["written"], "of": "image", "cmap": "heat", "highest": 1.0, **panel}),
        "figures.written_from": (figures.written_from, {"written": w["written"], "highest": 1.0, **drawn}),
        "figures.losses": (figures.losses, {"result": w["tuned"], **drawn}),
        "figures.reliability": (figures.reliability, {"found": w["calibration"], "of": "width", **drawn}),
        "figures.risk_coverage": (figures.risk_coverage, {"found": {"a": w["calibration"]}, **drawn}),
        "figures.signal_scores": (figures.signal_scores, {
            "table": lp.signal_table([w["told"]] * 2, [[True] * len(w["told"]), [False] * len(w["told"])]), **drawn}),
        "figures.mappable": (figures.mappable, {"drawn": figures.maps(m, row=0)}),
        "figures.save": (figures.save, {"figure": figures.maps(m, row=0), "path": folder / "a.png", "dpi": 50}),
        "tiny.scene": (tiny.scene, {"seed": 3, "size": 336}),
        "tiny.path": (tiny.path, {}),
        "tiny.cheats.planted": (tiny.cheats.planted, {"cheat": "frame", "seed": 4}),
        "tiny.cheats.changed": (tiny.cheats.changed, {"cheat": "frame", "seed": 4, "what": "cue"}),
        "tiny.cheats.seeds": (tiny.cheats.seeds, {"cheat": "caption", "first": 0, "count": 2}),
        "tiny.cheats.with_heart": (tiny.cheats.with_heart, {"seed": 4}),
        "tiny.is_scene": (tiny.is_scene, {"picture": image}),
        "VLM.generate": (vlm.generate, {
            **short, "video": None, "prompt": None, "messages": None, "inputs": None, "capture": None, "seed": 0,
            "processor_kwargs": None}),
        "VLM.generate (settings)": (vlm.generate, {**short, **dict.fromkeys(DECODING)}),
        "VLM.generate_batch": (vlm.generate_batch, {"samples": [(image, "What?")], "max_new_tokens": 2, "capture": None,
                                                    "seed": 0, "processor_kwargs": None}),
        "VLM.score": (vlm.score, {**asked, "answer": "red", "video": None, "prompt": None, "messages": None,
                                  "inputs": None, "capture": None, "processor_kwargs": None}),
        "VLM.rerun": (vlm.rerun, {"trace": trace, "answer": None, "capture": None}),
        "VLM.model_inputs": (vlm.model_inputs, {**asked, "processor_kwargs": None}),
        "VLM.lay_out": (vlm.lay_out, {**asked, "processor_kwargs": None}),
        "Trace.find": (trace.find, {"text": "the", "role": None, "occurrence": None}),
        "Trace.top": (trace.top, {"name": "logits"}),
        "Trace.kept": (trace.kept, {"name": "logits"}),
        "Trace.positions": (trace.positions, {"at": "image"}),
        "Trace.hidden": (trace.hidden, {"layer": 1, "at": lp.LAST}),
        "Trace.rows": (trace.rows, {"at": lp.LAST, "layer": 0, "head": 0}),
        "Trace.each_row": (_used_up(trace.each_row), {"at": lp.LAST, "layer": 0, "head": 0}),
        "Trace.save": (trace.save, {"path": folder / "b.trace"}),
        "Trace.page": (trace.page, {"path": folder / "b.html"}),
        "TraceComparison.page": (w["compared"].page, {"path": folder / "c.html"}),
        "ImageLayout.to_pixels": (w["layout"].to_pixels, {"values": m.row(0), "tiles": None}),
        "ImageLayout.to_tokens": (w["layout"].to_tokens, {"mask": mask}),
        "ImageLayout.tokens_in": (w["layout"].tokens_in, {"mask": mask}),
        **{f"ImageMap.{name}": (getattr(m, name), {"row": 0}) for name in ("row", "grid", "peak", "label")},
        "ImageMap.pixels": (m.pixels, {"row": 0, "tiles": None}),
        "ImageMap.overlay": (m.overlay, {"row": 0, "highest": None}),
        "ImageMap.save": (m.save, {"folder": folder / "map2"}),
        "Confidence.top": (w["confidence"].top, {"k": 3}),
        "Confidence.choices": (w["confidence"].choices, {"names": ["red", "blue"], "at": None}),
        "HeadShares.top": (w["heads"].top, {"k": 3, "of": "image", "row": 0}),
        "HeadShares.table": (w["heads"].table, {"k": 3, "of": "image", "row": 0}),
        "HeadShares.part": (w["heads"].part, {"name": "image"}),
        "HeadShares.share": (w["heads"].share, {"name": "image", "row": 0}),
        "TraceComparison.heads": (w["compared"].heads, {"k": 3}),
        "Looking.share": (w["compared"].looking.share, {"part": "image"}),
        **{f"ModelComparison.{name}": (getattr(w["models_compared"], name), {"k": 3})
           for name in ("by_question", "flipped", "flipped_pictures", "heads", "modules")},
        "ModelComparison.alike": (w["models_compared"].alike, {"place": "image"}),
        "Written.part": (w["written"].part, {"name": "image"}),
        "Written.map": (w["written"].map, {"layer": 1, "head": 0, "image": 0}),
        "Written.top": (w["written"].top, {"k": 3}),
        "Written.table": (w["written"].table, {"k": 3}),
        "Features[...]": (w["features"].__getitem__, {"key": ("layer_1", "text")}),
        "Features.numpy": (w["features"].numpy, {"what": "layer_1", "position": "last_prompt", "rows": [0]}),
        "Features.batches": (_used_up(w["features"].batches), {"what": "layer_1", "position": "last_prompt",
                                                               "size": 3}),
        "Features.table": (w["features"].table, {"columns": ["id"]}),
        "Features.column": (w["features"].column, {"name": "id"}),
        "Features.to_dataset": (w["features"].to_dataset, {"layers": [("layer_1", "last_prompt")]}),
        "Ragged[...]": (w["ragged"].__getitem__, {"row": 0}),
        "Ragged.positions_of": (w["ragged"].positions_of, {"row": 0}),
        "Probe.scores": (w["probe"].scores, {"hidden": w["hidden"]}),
        "Probe.probabilities": (w["probe"].probabilities, {"hidden": w["hidden"]}),
        "Probe.predict": (w["probe"].predict, {"hidden": w["hidden"]}),
        "Probe.direction": (w["probe"].direction, {"label": "red"}),
        "Probe.apply": (w["probe"].apply, {"trace": trace, "at": lp.LAST}),
        "Probe.strip": (w["probe"].strip, {"trace": trace}),
        "Probe.map": (w["probe"].map, {"trace": trace, "label": "red", "image": 0}),
        "Probe.save": (w["probe"].save, {"path": folder / "b.probe"}),
        "Sweep[...]": (w["sweep"].__getitem__, {"key": w["key"]}),
        "Sweep.confusion": (w["sweep"].confusion, {"layer": w["key"][0], "position": w["key"][1]}),
        "Sweep.compare": (w["sweep"].compare, {"first": w["key"], "second": w["key"]}),
        "Sweep.probe": (w["sweep"].probe, {"layer": w["key"][0], "position": w["key"][1]}),
        "LocalisationHeads.table": (w["found"].table, {"k": 2}),
        "LocalisationHeads.from_dict": (type(w["found"]).from_dict, {"told": w["found"].to_dict()}),
        "TamScores.pooled": (evaluate.TamScores.pooled, {"scores": [evaluate.tam_scores(m, {0: mask})]}),
    }  # fmt: skip
    for name in ("average_precision", "energy_inside", "pr_area", "pr_curve", "touches"):
        each[f"evaluate.{name}"] = getattr(evaluate, name), {"m": m, "mask": mask, "row": 0}
    attributing = {
        "vlm": vlm,
        "trace": trace,
        "image": 0,
        "tokens": lp.LAST,
        "contrast": None,
        "text": None,
        "of": None,
    }
    few: dict[str, Any] = {"budget": 4, "steps": 2, "batch": 2, "cells": 3, "heads": [(0, 0)], "window": 8}
    for name, method in lp.METHODS.items():
        options = {key: few.get(key, default) for key, default in method.options.items()}
        if "heads" in options and name != "localisation_heads":
            options["heads"] = None
        attributing["tokens"] = [trace.prompt_length]
        each[f"lp.attribute, {name}"] = lp.attribute, {**attributing, "method": name, **options}
    whole = (trace, m, w["layout"], w["confidence"], w["heads"], w["sinks"], w["probe"], w["ragged"], w["case"],
             w["written"], w["found"], w["agreement"], w["overlap"], w["curve"], w["token"], w["score"], w["scene"],
             w["nearest"], w["scene"].questions[0], w["scene"].objects[0], lp.Capture(), lp.Cluster())  # fmt: skip
    for value in whole:
        assert is_dataclass(value)
        each[type(value).__name__] = type(value), {field.name: getattr(value, field.name) for field in fields(value)}
    return each


def public() -> list[str]:
    """Every public callable, by the name that ``bases`` would know it by."""
    found = []
    for prefix, module in (("lp", lp), ("evaluate", evaluate), ("figures", figures), ("tiny", tiny)):  # fmt: skip
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) and not issubclass(thing, BaseException):
                found += [
                    f"{name}.{method}"
                    for method, made in vars(thing).items()
                    if not method.startswith("_") and (inspect.isfunction(made) or isinstance(made, classmethod))
                    if len(inspect.signature(getattr(made, "__func__", made)).parameters) > 1
                ]
            elif inspect.isfunction(thing):
                found.append(f"{prefix}.{name}")
    return found


@cache
def _whole() -> lp.Trace:
    w = world()
    capture = lp.Capture(attention_positions="all")
    return w["vlm"].generate(w["image"], "What?", max_new_tokens=2, capture=capture)


def _drawn() -> dict[str, Any]:
    """What sweeps of two samples and a short training could find, to be drawn."""
    ones, said = np.ones, (("a", "b"),) * 2
    edges, parts = ("image->last",), ("changed",)
    flow = InformationFlow(
        edges, (1,), (0, 1), ones((2, 3, 1, 1, 2)), ones((2, 3, 1, 1, 2)), ones((2, 2)), ones(2), said
    )
    traced = CausalTrace(parts, ("mlp",), (0, 1), 1, ones((2, 2, 1, 1, 2)), ones((2, 2)), ones((2, 2)), said, "blur")
    dose = DoseResponse((0.0, 1.0), {1: 1.0}, {"probability": ones((2, 2, 2))}, (), said)
    patched = AttributionPatching(parts, ("mlp",), (0, 1), *(ones((2, 1, 1, 2)) for _ in range(3)), ones((2, 2)))
    losses = ({"step": 1, "loss": 2.0, "learning_rate": 1e-3},)
    tuned = Finetuned(Path("tuned"), ("language",), losses, ({"step": 0, "loss": 3.0, "exact": 0.5},), 9, 20, 0.1)
    return {"flow": flow, "traced": traced, "dose": dose, "patched": patched, "tuned": tuned}


def _entered(context: Callable[..., Any]) -> Callable[..., Any]:
    def enter(**arguments: Any) -> None:
        with context(**arguments):
            world()["vlm"].generate(world()["image"], "What?", max_new_tokens=1)

    return enter


def _found_in(trace: lp.Trace) -> Callable[..., Any]:
    def found(**arguments: Any) -> list[int]:
        return trace.positions(lp.Region(**arguments))

    return found


def _used_up(iterate: Callable[..., Any]) -> Callable[..., Any]:
    def use(**arguments: Any) -> list[Any]:
        return [each for each, _ in zip(iterate(**arguments), range(50), strict=False)]

    return use


def tries(count: int, seed: int, only: str | None = None) -> Iterator[Try]:
    """``count`` of all pairs of an argument and a nasty value, drawn without putting back; all of them for 0."""
    values = list(nasty())
    every = [
        Try(name, call, arguments, argument, value)
        for name, (call, arguments) in bases().items()
        if only is None or only in name
        for argument in arguments
        for value in values
    ]
    random.Random(seed).shuffle(every)
    yield from every[: count or None]


def outcome(each: Try) -> tuple[str, str]:
    """What became of one try: ``accepted``, ``refused``, ``foreign``, ``slow`` or ``large``; and the error."""
    arguments = dict(each.arguments)
    if each.name == "VLM.generate (settings)":
        given = {key: arguments[key] for key in ("image", "question", "max_new_tokens")}
        sampling = {"do_sample": True} if each.replaced in ("temperature", "top_k", "top_p", "min_p") else {}
        arguments = {**given, **sampling}
    arguments[each.replaced] = nasty()[each.by]()
    if isinstance(arguments.get("out"), str) and arguments["out"] == "OUT":
        arguments["out"] = Path(tempfile.mkdtemp(dir=world()["folder"])) / "f"
    try:
        with bounded(), warnings.catch_warnings(), working_in(world()["folder"]):
            warnings.simplefilter("ignore")
            each.call(**arguments)
    except lp.ProbeError as error:
        return ("refused", str(error)) if len(str(error)) < 1000 else ("foreign", "an error of over 1,000 letters")
    except TimeoutError:
        return "slow", f"over {SECONDS} s\n{traceback.format_exc(limit=-4)}"
    except MemoryError as error:
        return "large", repr(error)
    except BaseException as error:
        told = f"{type(error).__name__}: {error}"
        if isinstance(error, RuntimeError) and "memory" in told:
            return "large", told[:300]
        return "foreign", told[:300] + "\n" + traceback.format_exc(limit=-3)[-600:]
    return "accepted", ""


@contextmanager
def bounded() -> Iterator[None]:
    """Ten seconds, and a gigabyte above what is mapped now."""

    def late(*_: Any) -> None:
        raise TimeoutError

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, before[1][1]))
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before[1])
        signal.signal(signal.SIGALRM, before[0])


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """What is written to a relative path lands here."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


def main() -> int:
    """Try, and tell what was foreign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="how many tries; 0 for every pair")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="callables whose name holds this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    unknown = set(public()) - {name.partition(",")[0] for name in bases()} - INNER
    if unknown:
        print(f"no valid arguments are known of: {', '.join(sorted(unknown))}")
    found: Counter[str] = Counter()
    for each in tries(given.count, given.seed, given.only):
        what, told = outcome(each)
        found[what] += 1
        if what not in ("accepted", "refused"):
            print(f"{what.upper()} {each}: {told}", flush=True)
    print(", ".join(f"{number} {what}" for what, number in found.most_common()))
    return int(bool(unknown or found["foreign"] or found["slow"] or found["large"]))


if __name__ == "__main__":
    sys.exit(main())
