"""Ctrl-C at any moment: what it leaves of a model, of torch and of transformers. It must be nothing.

    python tools/interrupts.py --count 2000        # make interrupts

One operation after another is begun and broken off by a signal after a random part of the time that it takes. After
each, everything that the package ever changes is compared with what it was before: hooks, forwards, flags, the kernels'
names and table entries, torch's modes and generator, the visitors in force, and whether another thread gets the lock.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.models.clip import modeling_clip
from transformers.models.llama import modeling_llama

import llava_probe as lp
from llava_probe import tiny
from llava_probe.evaluate.randomised import randomised
from llava_probe.inside.passes import alone_with, visitors_of

Operation = Callable[[], Any]


def operations(vlm: lp.VLM) -> dict[str, Operation]:
    """Everything that runs the model, small."""
    scene = tiny.scene(34)
    question = "What is the text on the stop sign?"
    trace = vlm.generate(scene.image, question)
    measured = lp.VLM(vlm.model, vlm.processor, layout="measured")
    sizes = iter(range(150, 100_000))
    made: dict[str, Operation] = {
        "generate": lambda: vlm.generate(scene.image, question, max_new_tokens=4),
        "beams": lambda: vlm.generate(scene.image, question, max_new_tokens=4, num_beams=2),
        "whole": lambda: vlm.generate(
            scene.image,
            question,
            max_new_tokens=2,
            capture=lp.Capture(positions="all", attention_positions="all", vision=True),
        ),
        "score": lambda: vlm.rerun(trace, answer=trace.generated_ids),
        "measure": lambda: measured.lay_out(scene.image.resize((next(sizes), 140))),
        "extract": lambda: _extracted(vlm, scene.image, question),
        "cut": lambda: _cut(vlm, scene.image, question),
        "cut twice": lambda: _cut_twice(vlm, trace),
        "random": lambda: _random(vlm, trace),
        "check": lambda: lp.check(vlm, scene.image, max_new_tokens=2),
    }
    options: dict[str, dict[str, Any]] = {
        "occlusion": {"window": 7},
        "rise": {"budget": 4},
        "integrated_gradients": {"steps": 2},
        "relative_attention": {},
    }
    skipped = ("localisation_heads",)  # its heads are chosen once, by runs of the above
    for method in lp.METHODS:
        if method not in skipped:
            given = options.get(method, {})
            made[method] = lambda method=method, given=given: lp.attribute(  # type: ignore[misc]
                vlm, trace, method, tokens=trace.prompt_length, **given
            )
    for method, given in (("relevance", {"through": "tower"}), ("relevance", {"checkpoint": True})):
        made[f"{method} {given}"] = lambda method=method, given=given: lp.attribute(  # type: ignore[misc]
            vlm, trace, method, tokens=trace.prompt_length, **given
        )
    made["gradient of pixels"] = lambda: lp.attribute(vlm, trace, "gradient", tokens=trace.prompt_length, on="pixels")
    return made


def _extracted(vlm: lp.VLM, image: Any, question: str) -> None:
    rows = [{"image": image, "question": asked} for asked in (question, "What is this?")]
    with tempfile.TemporaryDirectory() as folder:
        lp.extract(vlm, rows, folder, layers=[3, "vision_-2"], positions=["last_prompt", "patches_mean"])


def _cut(vlm: lp.VLM, image: Any, question: str) -> None:
    with lp.knock_out(vlm, keys=lp.IMAGE):
        vlm.generate(image, question, max_new_tokens=3)


def _cut_twice(vlm: lp.VLM, trace: lp.Trace) -> None:
    with lp.knock_out(vlm, keys=lp.IMAGE, layers=[0]), lp.knock_out(vlm, keys=1):
        lp.attribute(vlm, trace, "relevance", tokens=trace.prompt_length)


def _random(vlm: lp.VLM, trace: lp.Trace) -> None:
    with randomised(vlm, 1):
        vlm.rerun(trace, answer=trace.generated_ids)


def state(vlm: lp.VLM) -> dict[str, Any]:
    """Everything that the package ever changes and has to put back."""
    model = vlm.model
    modules = list(model.modules())
    weights = list(model.parameters())
    configs = {id(each.config): each.config for each in modules if hasattr(each, "config")}
    return {
        "hooks": sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules),
        "hooks with keywords": sum(len(each._forward_pre_hooks_with_kwargs) for each in modules),
        "backward hooks": sum(len(each._backward_hooks) for each in modules),
        "forwards": [name for name, each in model.named_modules() if "forward" in vars(each)],
        "learning": [weight.requires_grad for weight in weights],
        "gradients": [weight.grad is None for weight in weights],
        "weights": float(sum(weight.detach().double().sum() for weight in weights)),
        "training": model.training,
        "kernels' names": [config._attn_implementation for config in configs.values()],
        "kernels": dict(AttentionInterface._global_mapping),
        "masks": dict(ALL_MASK_ATTENTION_FUNCTIONS),
        "eager kernels": (modeling_llama.eager_attention_forward, modeling_clip.eager_attention_forward),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "function modes": torch._C._len_torch_function_stack(),
        "saved tensors": torch._C._autograd._top_saved_tensors_default_hooks(False),
        "generator": torch.get_rng_state().tolist(),
        "visitors": visitors_of(vlm.anatomy),
        "lock": _free(vlm),
    }


def _free(vlm: lp.VLM) -> bool:
    """Whether another thread gets the model's lock."""
    got: list[bool] = []

    def try_it() -> None:
        lock = alone_with(vlm.anatomy.model)
        if lock.acquire(timeout=1):
            got.append(True)
            lock.release()

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    return bool(got)


class Stop(KeyboardInterrupt):
    """The interrupt, so that no other is taken for it."""


def _stop(*_: object) -> None:
    raise Stop


def interrupt(operation: Operation, after: float) -> bool:
    """Break an operation off; whether it was still running."""
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, max(after, 1e-5))
            operation()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Stop:
        return True
    except lp.ProbeError:  # an interrupt inside a thread of its own, told as what it broke
        return True
    return False


def main() -> int:
    """Print how many operations were broken off, and what was left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _stop)
    vlm, draw = lp.load(), random.Random(arguments.seed)
    known = operations(vlm)
    lengths = {}
    for name, operation in known.items():
        operation()
        started = time.perf_counter()
        operation()
        lengths[name] = time.perf_counter() - started
    before, broken, left = state(vlm), Counter[str](), []
    names = sorted(known, key=lengths.__getitem__)
    weights = [1 / max(lengths[name], 0.02) for name in names]  # short ones more often: their seams are denser
    while sum(broken.values()) < arguments.count:
        name = draw.choices(names, weights)[0]
        if interrupt(known[name], draw.random() * lengths[name]):
            broken[name] += 1
        after = state(vlm)
        if wrong := [what for what in before if before[what] != after[what]]:
            left.append((name, wrong))
            print(f"left after {name}: {', '.join(wrong)}", flush=True)
            if len(left) > 20:
                break
            before = after
    for name in names:
        print(f"{broken[name]:5d}  {name}  ({1000 * lengths[name]:.0f} ms whole)")
    print(f"{sum(broken.values())} interrupts, {len(left)} of them left something behind")
    return bool(left)


if __name__ == "__main__":
    sys.exit(main())
