"""The model's own chat template: what it makes of a chat, and which words it reads.

A template is a program of the model's author. It takes arguments of its own (``enable_thinking``, ``tools``), reads
the keys of a message that it knows, and passes over all others without a word; what it would pass over is found here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import meta, nodes

from llava_probe.errors import BadInput, first_line

#: What every template is given, and is therefore no argument of its own.
_GIVEN = frozenset({"messages", "raise_exception", "strftime_now", "namespace", "range", "dict"})

#: Arguments that transformers reads itself, whatever the template.
_READ_BEFORE = frozenset({"add_generation_prompt", "continue_final_message", "chat_template"})


def templated(
    processor: Any, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any] | None = None
) -> str:
    """The prompt that the processor's template makes of a chat, ready for the answer.

    Raises:
        BadInput: it has no template, or its template refuses the chat.
    """
    if not has_template(processor, template_kwargs):
        raise BadInput(
            f"{type(processor).__name__} has no chat template to put plain words into; give the whole text as prompt="
            f"{_place(processor)}"
        )
    settings = {"add_generation_prompt": True, **(template_kwargs or {})}
    if not getattr(processor, "chat_template", None):
        settings.setdefault("chat_template", processor.tokenizer.chat_template)
    if settings.get("continue_final_message"):
        settings = {**settings, "add_generation_prompt": False}
    try:
        return str(processor.apply_chat_template(messages, tokenize=False, **settings))
    except Exception as error:  # jinja raises whatever the template's author chose
        raise BadInput(f"the model's chat template refused these messages: {first_line(error)}") from error


def _place(processor: Any) -> str:
    mark = getattr(processor, "boi_token", None) or getattr(processor, "image_token", None)
    return f", with {mark} where each picture goes" if mark else ""


def has_template(processor: Any, template_kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether there is a template to put plain words into."""
    return bool((template_kwargs or {}).get("chat_template") or _own(processor))


def _own(processor: Any) -> Any:
    """The processor's template; in older checkpoints the tokenizer alone has one."""
    return getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)


def check_arguments(processor: Any, template_kwargs: Mapping[str, Any] | None) -> None:
    """Every argument is one that the template reads, as far as that can be told.

    Raises:
        BadInput: no mapping, or arguments that the template does not read.
    """
    if template_kwargs is None:
        return
    if not isinstance(template_kwargs, Mapping) or not all(isinstance(name, str) for name in template_kwargs):
        raise BadInput(f"template_kwargs= takes a dict of the chat template's arguments; got {template_kwargs!r}")
    known = arguments_of(source_of(processor, template_kwargs))
    if known is None:
        return
    unknown = sorted(set(template_kwargs) - known - _READ_BEFORE)
    if unknown:
        special = set(getattr(processor.tokenizer, "special_tokens_map", {}))
        read = ", ".join(sorted((known | _READ_BEFORE) - special))
        raise BadInput(f"the model's chat template reads no {', '.join(unknown)}; it reads {read}")


def source_of(processor: Any, template_kwargs: Mapping[str, Any] | None = None) -> str:
    """The text of the template, or of all where there are several."""
    given = (template_kwargs or {}).get("chat_template")
    source = _own(processor) or ""
    if isinstance(source, Mapping):
        return str(source.get(given, "\n".join(map(str, source.values()))) if isinstance(given, str | None) else given)
    return str(given or source)


@lru_cache(maxsize=16)
def arguments_of(source: str) -> frozenset[str] | None:
    """The names that a template reads from outside; None where it cannot be parsed."""
    tree = _parsed(source)
    return None if tree is None else frozenset(meta.find_undeclared_variables(tree)) - _GIVEN


@lru_cache(maxsize=16)
def words_of(source: str) -> frozenset[str]:
    """Every attribute and every word in quotes of a template: a key that is not among them is never read."""
    tree = _parsed(source)
    if tree is None:
        return frozenset(re.findall(r"\w+", source))
    quoted = [str(one.value) for one in tree.find_all(nodes.Const) if isinstance(one.value, str)]
    return frozenset(one.attr for one in tree.find_all(nodes.Getattr)) | frozenset(re.findall(r"\w+", " ".join(quoted)))


def _parsed(source: str) -> nodes.Template | None:
    environment = jinja2.Environment(extensions=[_Generation, jinja2.ext.loopcontrols])
    try:
        return environment.parse(source)
    except jinja2.TemplateError:
        return None


class _Generation(jinja2.ext.Extension):
    """The tag that transformers adds to jinja: ``{% generation %}`` around what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own way

    def parse(self, parser: Any) -> Any:
        """Its body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
