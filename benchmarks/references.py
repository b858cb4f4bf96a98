"""Whether relevance, rollout and AttnLRP give what their authors' own code gives: it is run on the same passes.

    git clone https://github.com/hila-chefer/Transformer-MM-Explainability chefer
    git clone https://github.com/rachtibat/LRP-eXplains-Transformers lxt
    python benchmarks/references.py --chefer chefer --lxt lxt

On the tiny model and two of its scenes, six tokens of each answer. Relevance and rollout: all attention matrices are
kept on the eager path and their gradients taken, and the published rules are applied to them. AttnLRP: the published
patches of a Llama's modules stand in for them in a pass of their own. Printed: the largest difference of any position's
value, as a share of the row's largest, over all tokens, in float64 (inside norms and eager softmax: float32).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor
from transformers.models.llama import modeling_llama

import llava_probe as lp
from llava_probe import tiny
from llava_probe.attribution import prepared
from llava_probe.attribution.engine.target import Task

QUESTION = "Describe the picture."
SCENES = (34, 35)
TOKENS = 6


def main() -> None:
    """Print one line for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chefer", type=Path, required=True, help="a clone of Transformer-MM-Explainability")
    parser.add_argument("--lxt", type=Path, required=True, help="a clone of LRP-eXplains-Transformers")
    args = parser.parse_args()
    vlm = lp.load("tiny")
    vlm.model.double()
    rules = loaded("chefer", args.chefer / "lxmert/lxmert/src/ExplanationGenerator.py")
    theirs = {
        "relevance": chefer_relevance(rules),
        "rollout": chefer_rollout(rules),
        "attnlrp": lxt_relevance(lxt_patches(args.lxt)),
    }
    print(
        f"torch {torch.__version__}, {type(vlm.model).__name__}, float64; largest difference / largest value of a row"
    )
    for method, reference in theirs.items():
        off, tokens = 0.0, 0
        for seed in SCENES:
            trace = vlm.generate(tiny.scene(seed).image, QUESTION, max_new_tokens=TOKENS)
            task = prepared(vlm, trace, method, tokens="generated", of="logit")
            ours = lp.METHODS[method].run(task).positions
            for row, target in zip(ours, task.targets, strict=True):
                (step,) = target.steps(0)
                truth = reference(vlm, task, task.position(step), task.answers[0][step])
                off = max(off, float((row - truth).abs().max() / truth.abs().max()))
                tokens += 1
        print(f"{method:12} {off:.1e}  ({tokens} tokens)")


def loaded(name: str, path: Path) -> ModuleType:
    """A file as a module, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


Reference = Callable[[lp.VLM, Task, int, int], Tensor]


def eager(vlm: lp.VLM, task: Task, position: int, token: int) -> tuple[list[Tensor], list[Tensor]]:
    """Every layer's attention [H, P, P] with the gradient of one logit with respect to it."""
    before = vlm.model.config._attn_implementation
    vlm.model.set_attn_implementation("eager")
    try:
        with torch.enable_grad():
            inputs = task.continuations[0].inputs
            embeds = vlm.model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
            handle = vlm.model.get_input_embeddings().register_forward_hook(lambda *_: embeds)
            output = vlm.model(**inputs, output_attentions=True)
            handle.remove()
            slopes = torch.autograd.grad(output.logits[0, position - task.fed, token], output.attentions)
    finally:
        vlm.model.set_attn_implementation(before)
    return [each[0].detach() for each in output.attentions], [each[0] for each in slopes]


def chefer_relevance(rules: ModuleType) -> Reference:
    def reference(vlm: lp.VLM, task: Task, position: int, token: int) -> Tensor:
        relevance = torch.eye(task.fed, dtype=torch.float64)
        for attention, slope in zip(*eager(vlm, task, position, token), strict=True):
            cam = rules.avg_heads(attention, slope)
            relevance = relevance + rules.apply_self_attention_rules(relevance, relevance, cam)[0]
        return relevance[position]

    return reference


def chefer_rollout(rules: ModuleType) -> Reference:
    def reference(vlm: lp.VLM, task: Task, position: int, token: int) -> Tensor:
        attentions, _ = eager(vlm, task, position, token)
        return rules.compute_rollout_attention([each.mean(0, keepdim=True) for each in attentions])[0, position]

    return reference


def lxt_patches(clone: Path) -> ModuleType:
    """Their patches of modules; the packages around them import models that transformers no longer has."""
    for name in ("lxt", "lxt.efficient"):
        sys.modules[name] = types.ModuleType(name)
    loaded("lxt.efficient.rules", clone / "lxt/efficient/rules.py")
    return loaded("lxt.efficient.patches", clone / "lxt/efficient/patches.py")


def lxt_relevance(patches: ModuleType) -> Reference:
    def reference(vlm: lp.VLM, task: Task, position: int, token: int) -> Tensor:
        entry: list[Tensor] = []

        def enter(_module: object, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            entry.append(kwargs["inputs_embeds"].detach().requires_grad_())
            return args, kwargs | {"inputs_embeds": entry[0]}

        handle = vlm.model.model.language_model.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            with patched(patches, vlm.model.model.language_model), torch.enable_grad():
                logits = vlm.model(**task.continuations[0].inputs).logits
                (slope,) = torch.autograd.grad(logits[0, position - task.fed, token], entry)
        finally:
            handle.remove()
        return (entry[0] * slope)[0].sum(-1).detach()

    return reference


@contextmanager
def patched(patches: ModuleType, language: torch.nn.Module) -> Iterator[None]:
    """What ``lxt.efficient.models.llama`` patches, on this model's own modules, and taken away again."""
    forwards = {"LlamaMLP": patches.gated_mlp_forward, "LlamaRMSNorm": patches.rms_norm_forward}
    mine = [module for module in language.modules() if type(module).__name__ in forwards]
    kernel = modeling_llama.ALL_ATTENTION_FUNCTIONS["sdpa"]
    for module in mine:
        module.forward = types.MethodType(forwards[type(module).__name__], module)
    modeling_llama.ALL_ATTENTION_FUNCTIONS["sdpa"] = patches.wrap_attention_forward(kernel)
    try:
        yield
    finally:
        modeling_llama.ALL_ATTENTION_FUNCTIONS["sdpa"] = kernel
        for module in mine:
            del module.forward


if __name__ == "__main__":
    main()
