"""What users hand to ``generate`` and it calls at each step: each is shown copies, and gives a copy back.

A logits processor may keep the scores that it was given and write into them a step later, a criterion or a streamer
write into the ids: ``generate`` goes on with the very same tensors, so that a trace would tell of tokens that the model
never read, and of scores from which nothing was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from llava_probe.errors import BadInput
from llava_probe.inside import seam


def guarded(arguments: Mapping[str, Any], start: int) -> tuple[dict[str, Any], dict[int, int]]:
    """Arguments of ``generate`` whose callables reach no tensor of its own.

    Args:
        arguments: by name.
        start: how many ids each row has before its answer.

    Returns:
        The arguments, and after how many tokens a criterion of the user's ended a row: filled while it runs.
    """
    arguments, ended = dict(arguments), dict[int, int]()
    if criteria := arguments.get("stopping_criteria"):
        arguments["stopping_criteria"] = StoppingCriteriaList([_Noted(one, start, ended) for one in criteria])
    if processors := arguments.get("logits_processor"):
        arguments["logits_processor"] = LogitsProcessorList(
            # generate leaves out its own processor where it is handed one of the same class
            [one if seam.is_own_processor(one) else _Shown(one) for one in processors]
        )
    if (allowed := arguments.get("prefix_allowed_tokens_fn")) is not None:
        arguments["prefix_allowed_tokens_fn"] = lambda sample, ids: _ids(allowed(sample, ids.clone()))
    if (streamer := arguments.get("streamer")) is not None:
        arguments["streamer"] = _Told(streamer)
    return arguments, ended


def _ids(given: Any) -> Any:
    """What a function of the user's allows next.

    Raises:
        BadInput: it is no list of ids.
    """
    if isinstance(given, Tensor | list | tuple | set | range):
        return list(given) if isinstance(given, set | range) else given
    raise BadInput(f"prefix_allowed_tokens_fn= gives a list of ids for each step; it gave {type(given).__name__}")


class _Shown(LogitsProcessor):
    """A logits processor of the user's."""

    def __init__(self, processor: Callable[..., Any]) -> None:
        self._processor = processor

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        made = self._processor(input_ids.clone(), scores.clone())
        return made.clone() if isinstance(made, Tensor) else made


class _Told:
    """A streamer of the user's."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer

    def put(self, value: Tensor) -> None:
        self._streamer.put(value.clone())

    def end(self) -> None:
        self._streamer.end()


class _Noted(StoppingCriteria):
    """A criterion of the user's, with a note of when it first ended each row: what follows there is padding.

    It is shown copies: what it writes into them is not what was scored.
    """

    def __init__(self, criterion: Any, start: int, ended: dict[int, int]) -> None:
        self._criterion, self._start, self._ended = criterion, start, ended
        self._shown: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if isinstance(scores, tuple):
            self._shown += [each.clone() for each in scores[len(self._shown) :]]
            scores = tuple(self._shown)
        done = self._criterion(input_ids.clone(), scores, **kwargs)
        flags = done.tolist() if isinstance(done, Tensor) else [done] * len(input_ids)
        for row, over in enumerate(flags):
            if over:
                self._ended.setdefault(row, input_ids.shape[1] - self._start)
        return done
