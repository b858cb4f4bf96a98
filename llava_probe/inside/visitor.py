"""What looks at a pass of a model, or changes it: a method for each thing that happens, all of them optional."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.rows import Call
from llava_probe.inside.spans import Span

#: What enters a module besides what is told apart, by name.
Others = dict[str, Any]


class Visitor:
    """Comes with the passes of a model while ``visiting`` lasts; what a method returns replaces what it was given.

    Attributes:
        changes: whether it comes before what only looks.
    """

    changes = False

    @property
    def whole(self) -> bool:
        """Whether it needs each prompt in one pass, and not its beginning from a cache."""
        return False

    # --- what it wants to hear of ---

    def hears(self, method: str) -> bool:
        """Whether it wants to hear of one kind of thing: of those that its class has a method for."""
        return getattr(type(self), method) is not getattr(Visitor, method)

    def stacks(self, anatomy: Anatomy) -> tuple[Stack | None, ...]:
        """Whose blocks it wants to hear of; None: of attention modules in no stack as well."""
        return (anatomy.decoder,)

    def modules(self, anatomy: Anatomy) -> Iterable[nn.Module]:
        """Single modules that it wants to hear of, before and after they run."""
        return ()

    def unfused(self, anatomy: Anatomy) -> Iterable[Stack]:
        """Stacks whose modules, where they have a kernel of their own, are to compute whole matrices of weights."""
        return ()

    # --- what happens, in this order ---

    def entry(self, embeddings: Tensor | None, others: Others) -> tuple[Tensor | None, Others] | None:
        """What enters the decoder: embeddings [B, P, D], None where it embeds ids itself, and all else by name."""

    def begin(self, span: Span) -> None:
        """A pass of the decoder begins, over these tokens."""

    def embedded(self, span: Span, embeddings: Tensor) -> Tensor | None:
        """What enters the decoder after all, [B, P, D], where it does not embed ids itself: nobody changes it again."""

    def attention(self, call: Call) -> Call | None:
        """An attention module is about to call its kernel."""

    def attended(self, call: Call, output: Tensor | None) -> Tensor | None:
        """The kernel has given its output [B, Q, H, d]; None where the module has a kernel of its own."""

    def part(self, stack: Stack, kind: str, layer: int, output: Tensor) -> Tensor | None:
        """What the ``"attention"`` or the ``"mlp"`` part of a block adds."""

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> Tensor | None:
        """Hidden state ``layer``: 0 what enters the first block, ``L`` of the decoder behind the final norm."""

    def end(self, span: Span, logits: Tensor) -> Tensor | None:
        """The pass is over, with these logits."""

    def before(self, module: nn.Module, args: Any, kwargs: Others) -> tuple[Any, Others] | None:
        """One of ``modules`` is about to run."""

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """One of ``modules`` has run."""

    # --- and at last ---

    def told(self) -> Mapping[str, Any] | None:
        """What it is, as plain data, where what runs under it is not the model as it is; None where it is."""
        return None

    def idle(self) -> str | None:
        """Why it never acted, where it should have; None where it did, or only looks."""
        return None
