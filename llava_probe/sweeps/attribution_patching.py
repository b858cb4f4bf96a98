"""All patches of a causal trace at once, to first order, and how well that orders them.

    found = lp.attribution_patching(vlm, (pair.clean.image, pair.question), pair.corrupt.image)
    print(found.table())                 # with the rank correlation with the exact sweep, part by part

Two runs and one backward pass in place of one run for each patch (Nanda 2023; Syed et al. 2023, arXiv 2310.10348): the
effect of putting the clean vector a* where the corrupted run has a is about (a* − a)·∂m/∂a, with m the logit
difference. Where a vector goes through a softmax that is all but certain the gradient is near zero whatever a patch
would do. So for queries and keys the softmax is taken again with the patched ones, and the change of weights is
multiplied by ∂m/∂A (Kramár et al. 2024, "AtP*", arXiv 2403.00745, section 3.1); what stands beside it is the plain
first order.

An approximation is worth what it has been compared with: ``exact`` samples are swept exactly too, and Spearman's rank
correlation over all groups and layers of a part is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from llava_probe.arrays import FloatArray
from llava_probe.asking.prompts import asked_again
from llava_probe.attribution.engine.forward import frozen
from llava_probe.border import CountFromZero, Seed, checked
from llava_probe.errors import BadInput, BadModel
from llava_probe.evaluate.ranks import rank_correlation
from llava_probe.inside.anatomy import Stack
from llava_probe.inside.passes import Others, Span, Visitor, alone_with, visiting
from llava_probe.inside.rows import Call
from llava_probe.interventions.on_states import by_position
from llava_probe.model import VLM
from llava_probe.sweeps.answers import LEAST_GAP, Watched
from llava_probe.sweeps.causal_trace import both_runs, default_groups, watched_in_both
from llava_probe.sweeps.changes import Swap, Swaps
from llava_probe.sweeps.departures import Departure, departing
from llava_probe.sweeps.sweeping import BAR_AFTER, aligned, over_samples
from llava_probe.trace.trace import Trace

PATCHED_PARTS = ("residual", "attention", "mlp", "query", "key", "value")


@checked
@dataclass(frozen=True, eq=False)
class AttributionPatching:
    """First-order effects of patches, by group of tokens, part and layer.

    Attributes:
        groups, parts, layers: as in a causal trace; hidden states for the residual stream, blocks for the rest.
        effects: [samples, groups, parts, layers] share of the logit difference that a clean vector brings back, with
            the correction of queries and keys; ``first_order``: without it.
        exact: the same of the samples that were swept exactly; NaN for the others.
        differences: [samples, 2] logit difference of the clean and of the corrupted run.
    """

    groups: tuple[str, ...]
    parts: tuple[str, ...]
    layers: tuple[int, ...]
    effects: FloatArray
    first_order: FloatArray
    exact: FloatArray
    differences: FloatArray

    def __len__(self) -> int:
        return len(self.effects)

    def __repr__(self) -> str:
        told = ", ".join(f"{part} {self.correlation(part):.2f}" for part in self.parts)
        return f"AttributionPatching({len(self)} samples; rank correlation with the exact sweep: {told})"

    def correlation(self, part: str, *, corrected: bool = True) -> float:
        """Spearman's rank correlation with the exact sweep over groups and layers, the mean of the samples swept.

        Raises:
            BadInput: a part that was not patched.
        """
        if part not in self.parts:
            raise BadInput(f"there are parts {', '.join(self.parts)}; got {part!r}")
        column, found = self.parts.index(part), []
        for own, exact in zip(self.effects if corrected else self.first_order, self.exact, strict=True):
            one, other = own[:, column].ravel(), exact[:, column].ravel()
            there = ~(np.isnan(one) | np.isnan(other))
            if there.sum() > 2:
                found.append(rank_correlation(one[there], other[there]))
        return float(np.nanmean(found)) if found and not np.isnan(found).all() else float("nan")

    def table(self) -> str:
        """For each part where the largest effect is, with its interval, and the rank correlations."""
        mean, low, high = over_samples(self.effects)
        lines = [["part", "most in", "layer", "effect", "95 %", "rank correlation", "first order"]]
        for number, part in enumerate(self.parts):
            own = mean[:, number]
            if np.isnan(own).all():
                continue
            group, layer = np.unravel_index(int(np.nanargmax(own)), own.shape)
            ends = f"{low[group, number, layer]:.2f} to {high[group, number, layer]:.2f}"
            rank = [f"{self.correlation(part, corrected=corrected):.2f}" for corrected in (True, False)]
            lines.append([part, self.groups[group], str(self.layers[layer]), f"{own[group, layer]:.2f}", ends, *rank])
        return aligned(lines)

    def __str__(self) -> str:
        return self.table()


@checked
def attribution_patching(
    vlm: VLM,
    clean: Any,
    corrupt: Any = "blur",
    *,
    parts: Sequence[str] = PATCHED_PARTS,
    exact: CountFromZero = 3,
    ring: CountFromZero = 0,
    answer: str | None = None,
    against: str | None = None,
    seed: Seed = 0,
) -> AttributionPatching:
    """The effects of putting clean vectors into the corrupted run, to first order, for every group, part and layer.

    Args:
        vlm: the model; its weights must let gradients through.
        clean, corrupt, ring, answer, against, seed: as for ``causal_trace``; the groups are its default ones.
        parts: of ``PATCHED_PARTS``; queries, keys and values are those of all heads of a block.
        exact: so many samples are swept exactly as well.

    Raises:
        BadInput: parts that are none, or a corrupted run of other tokens.
        BadModel: weights that let no gradient through.
    """
    chosen = tuple(dict.fromkeys(parts))
    if not chosen or not set(chosen) <= set(PATCHED_PARTS):
        raise BadInput(f"parts= takes some of {', '.join(PATCHED_PARTS)}; got {tuple(parts)}")
    pairs = both_runs(vlm, clean, corrupt, seed)
    found, truths, gaps = [], [], []
    names: tuple[str, ...] = ()
    with tqdm(total=len(pairs), desc="attribution patching", unit="sample", delay=BAR_AFTER, disable=None) as bar:
        for number, (one, other) in enumerate(pairs):
            groups = default_groups(one, other, ring)
            names = tuple(groups)
            effects, truth, gap = _sample(vlm, one, other, groups, chosen, (answer, against), number < exact)
            found.append(effects)
            truths.append(truth)
            gaps.append(gap)
            bar.update()
    both = np.array(found)  # [samples, 2, groups, parts, layers]
    layers = tuple(range(vlm.anatomy.layers))
    return AttributionPatching(names, chosen, layers, both[:, 0], both[:, 1], np.array(truths), np.array(gaps))


def _sample(
    vlm: VLM,
    clean: Trace,
    corrupt: Trace,
    groups: Mapping[str, tuple[int, ...]],
    parts: Sequence[str],
    words: tuple[str | None, str | None],
    swept_too: bool,
) -> tuple[FloatArray, FloatArray, list[float]]:
    """[2, groups, parts, layers] corrected and plain, the exact ones, and the two logit differences."""
    layers = range(vlm.anatomy.layers)
    shape = (len(groups), len(parts), len(layers))
    truth = np.full(shape, np.nan)
    with departing(vlm, [clean, corrupt]) as runs:
        first, other = (logits.cpu() for logits in runs.bases)
        watch = watched_in_both(vlm, first, other, words)
        high, low = float(watch.difference(first)), float(watch.difference(other))
        gap = high - low
        if swept_too and gap >= LEAST_GAP:
            places = [(name, part, layer) for name in groups for part in parts for layer in layers]
            lanes = [
                Departure(layer, min(groups[name]), Swap(part, range(layer, layer + 1), groups[name], 0), 1)
                for name, part, layer in places
                if groups[name]
            ]
            values = iter((watch.difference(runs.logits(lanes, Swaps).cpu()) - low) / gap)
            flat = [float(next(values)) if groups[name] else np.nan for name, _, _ in places]
            truth = np.array(flat).reshape(shape)
    effects = np.full((2, *shape), np.nan)
    if gap >= LEAST_GAP:
        effects = _approximated(vlm, clean, corrupt, groups, parts, watch) / gap
    return effects, truth, [high, low]


def _approximated(
    vlm: VLM,
    clean: Trace,
    corrupt: Trace,
    groups: Mapping[str, tuple[int, ...]],
    parts: Sequence[str],
    watch: Watched,
) -> FloatArray:
    """[2, groups, parts, layers] in units of the logit difference."""
    own, gradients = _taped(vlm, corrupt, parts, watch)
    theirs, _ = _taped(vlm, clean, parts, None)
    out = np.full((2, len(groups), len(parts), vlm.anatomy.layers), np.nan)
    for layer in range(vlm.anatomy.layers):
        for column, part in enumerate(parts):
            key = (part, layer)
            if key not in own.vectors or key not in gradients:
                continue
            change = (theirs.vectors[key] - own.vectors[key].detach()).double() * gradients[key].double()
            change = change.flatten(2).sum(-1)[0] if part not in _HEADED else change.sum((1, 3))[0]  # [positions]
            for row, places in enumerate(groups.values()):
                if not places:
                    continue
                out[:, row, column, layer] = float(change[list(places)].sum())
                if part in ("query", "key"):
                    out[0, row, column, layer] = _corrected(
                        own.calls[layer], theirs.calls[layer], gradients["given", layer], part, places
                    )
    return out


#: Parts whose vectors are [B, H, positions, d].
_HEADED = ("query", "key", "value")


def _corrected(own: Call, theirs: Call, slope: Tensor, part: str, places: Sequence[int]) -> float:
    """The change of weights with patched queries or keys, times the slope of the measure along them."""
    at = torch.tensor(list(places), device=own.device)
    tensor = getattr(own, part).clone()
    tensor[:, :, at] = getattr(theirs, part)[:, :, at]
    wanted = at if part == "query" else torch.arange(own.queries, device=own.device)  # a prefix sees ahead
    before, after = own.rows(wanted), replace(own, **{part: tensor}).rows(wanted)
    groups = own.sizes[1] // own.value.shape[1]
    values = own.value.repeat_interleave(groups, dim=1)
    along = torch.einsum("bqhd,bhkd->bhqk", slope[:, wanted].double(), values.double())
    return float(((after - before).double() * along).sum())


class _Tape(Visitor):
    """Keeps what each part gives in one pass, in the graph."""

    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = parts
        self.vectors: dict[tuple[str, int], Tensor] = {}
        self.given: dict[int, Tensor] = {}
        self.calls: dict[int, Call] = {}

    def entry(self, embeddings: Tensor | None, others: Others) -> tuple[Tensor | None, Others] | None:
        """The graph begins here."""
        if embeddings is None or not torch.is_grad_enabled():
            return None
        return embeddings.detach().requires_grad_(), others

    changes = True

    def begin(self, span: Span) -> None:
        """A pass begins."""
        self._span = span

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> None:
        """A hidden state."""
        self._keep("residual", layer, hidden)

    def part(self, stack: Stack, kind: str, layer: int, output: Tensor) -> None:
        """What attention or the MLP adds."""
        self._keep(kind, layer, output)

    def attended(self, call: Call, output: Tensor | None) -> None:
        """Queries, keys and values, and what heads give."""
        if output is None or call.span is None:
            return
        for name in _HEADED:
            if name in self._parts:
                self.vectors[name, call.layer] = getattr(call, name)
        self.given[call.layer] = output
        self.calls[call.layer] = replace(
            call, query=call.query.detach(), key=call.key.detach(), value=call.value.detach(), span=None
        )

    def _keep(self, part: str, layer: int, values: Tensor) -> None:
        if part in self._parts and (part, layer) not in self.vectors:
            self.vectors[part, layer] = values if values.ndim != 2 else by_position(values, self._span)[0]


def _taped(
    vlm: VLM, trace: Trace, parts: Sequence[str], watch: Watched | None
) -> tuple[_Tape, dict[tuple[str, int], Tensor]]:
    """What each part gave in a run, and the slope of the measure along it where one is watched.

    Raises:
        BadModel: no gradient comes back.
    """
    tensors, prompts = vlm.prepare([asked_again(trace.images, trace.request)], trace.request.processor)
    tape, model = _Tape(parts), vlm.anatomy.model
    with ExitStack() as stack:
        stack.enter_context(alone_with(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(frozen(model))
        torch.set_grad_enabled(watch is not None)
        stack.enter_context(visiting(vlm.anatomy, tape, prompts=prompts))
        inputs: dict[str, Any] = {**tensors, **vlm.anatomy.everywhere, "use_cache": False}
        logits = vlm.model(**inputs).logits[0, -1]
        if watch is None:
            return tape, {}
        along = {**tape.vectors, **{("given", layer): given for layer, given in tape.given.items()}}
        along = {key: tensor for key, tensor in along.items() if tensor.requires_grad}
        if not along:
            raise BadModel(f"no gradient comes back from the logits of {type(model).__name__}; use causal_trace")
        found = torch.autograd.grad(watch.difference(logits.double()), list(along.values()), allow_unused=True)
    zero = {key: torch.zeros_like(tensor) for key, tensor in along.items()}
    return tape, {key: zero[key] if one is None else one for key, one in zip(along, found, strict=True)}
