"""What a user sees: gradio's layout and events around three components of our own (``parts/``).

The picture, the answer and the page component are ``gr.HTML`` blocks with their own scripts, since ``gr.Image`` knows
neither of visual tokens nor of who may see which file. Between browser and server travel names of pictures and runs,
words, and nothing else; gradio's uploads, files and states are not used.
"""

from __future__ import annotations

import secrets
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import msgspec

from llava_probe.errors import ProbeError, first_line
from llava_probe.view.app.desk import LONGEST_QUESTION, Answered, Desk
from llava_probe.view.app.gate import OWNER
from llava_probe.view.app.messages import AnswerSettings, Done, Failed, MarkedPart, Said
from llava_probe.view.app.worker import Heard, Waiting

_PARTS = Path(__file__).parent / "parts"
_WAYS = {"the likeliest word": "greedy", "drawn by chance": "sampling", "a search (beams)": "beams"}
_HOW = {"without": "Without the marked part", "only": "With only the marked part"}
_ENDED = {"stopped": "stopped", "cut off": "cut off at its length", "": ""}


def screen(desk: Desk, model: str) -> gr.Blocks:
    """The whole page over one desk; ``model`` is what its head says of the model."""
    with gr.Blocks(title="llava_probe", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(
            html_template="<h1>llava_probe</h1><span>{{model}}</span>", model=model, elem_id="lp-head", js_on_load=None
        )
        with gr.Row(elem_id="lp-body", equal_height=False):
            with gr.Column(scale=0, min_width=320, elem_id="lp-asking"):
                picture = gr.HTML(
                    value="",
                    html_template=_part("picture.html"),
                    js_on_load=_part("picture.js"),
                    apply_default_css=False,
                    examples=desk.examples,
                    megabytes=desk.limits.megabytes,
                    elem_id="lp-picture",
                )
                question = gr.Textbox(
                    label="Question",
                    placeholder="What is in the picture?",
                    lines=2,
                    max_lines=6,
                    max_length=LONGEST_QUESTION,
                    submit_btn=False,
                    elem_id="lp-question",
                )
                with gr.Row(elem_id="lp-buttons"):
                    ask = gr.Button("Ask", variant="primary", elem_id="lp-ask")
                    stop = gr.Button("Stop", interactive=False, elem_id="lp-stop")
                settings = _settings(desk)
            with gr.Column(scale=1, min_width=320, elem_id="lp-answering"):
                answer = gr.HTML(
                    value={},
                    html_template=_part("answer.html"),
                    js_on_load=_part("answer.js"),
                    apply_default_css=False,
                    elem_id="lp-answer",
                )
                viewer = gr.HTML(
                    value={},
                    html_template=_part("viewer.html"),
                    js_on_load=_part("viewer.js"),
                    head='<script src="llava-probe/component.js"></script>',
                    apply_default_css=False,
                    elem_id="lp-viewer",
                )

        async def asked(request: gr.Request, picture: Any, question: Any, *chosen: Any) -> AsyncIterator[Any]:
            job, cards = _job(), [{"title": "", "question": str(question), "text": ""}]
            with _failing_softly() as failed:
                told = desk.ask(_owner(request), job, picture, question, _read_settings(desk, chosen))
                async for value, run in _shown(told, job, cards):
                    yield value, *_buttons(value), run
            for value in failed:
                yield value, *_buttons(value), gr.skip()

        async def asked_again(request: gr.Request, event: gr.EventData, before: Any) -> AsyncIterator[Any]:
            job, first = _job(), _first_card(before)
            with _failing_softly(first) as failed:
                cut = _read_event(event)
                cards = [first, {"title": _HOW[cut.how], "question": "", "text": ""}]
                told = desk.ask_again(_owner(request), job, _told(event, "run"), cut)
                async for value, run in _shown(told, job, cards):
                    yield value, *_buttons(value), run
            for value in failed:
                yield value, *_buttons(value), gr.skip()

        async def stopped(request: gr.Request, value: Any) -> None:
            desk.stop(_owner(request), value.get("job") if isinstance(value, dict) else None)

        async def chosen_question(event: gr.EventData) -> str:
            return str(_told(event, "question") or "")[:LONGEST_QUESTION]

        heard: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        outputs = [answer, ask, stop, viewer]
        gr.on([ask.click, question.submit], asked, [picture, question, *settings], outputs, **heard)
        viewer.again(asked_again, [answer], outputs, **heard)
        stop.click(stopped, [answer], None, **heard)
        picture.suggested(chosen_question, None, question, **heard)
    blocks.queue(default_concurrency_limit=None, max_size=256)
    return blocks


def theme() -> gr.themes.Base:
    """Quiet colours, and the fonts that the machine has: none is fetched."""
    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    quiet = gr.themes.Base(primary_hue="blue", neutral_hue="slate", radius_size="md", font=sans, font_mono=mono)
    return quiet.set(  # letters that stand out enough from what is behind them
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
    )


def css() -> str:
    """How our parts look."""
    return _part("app.css")


def _settings(desk: Desk) -> list[gr.components.Component]:
    most = desk.limits.new_tokens
    with gr.Accordion("Settings", open=False, elem_id="lp-settings"):
        tokens = gr.Slider(1, most, min(64, most), step=1, label="Said of the answer, at most (tokens)")
        way = gr.Radio(list(_WAYS), value=next(iter(_WAYS)), label="Each word is")
        with gr.Group(visible=False) as by_chance:
            temperature = gr.Slider(0.1, 2.0, 1.0, step=0.1, label="Temperature")
            top_p = gr.Slider(0.05, 1.0, 1.0, step=0.05, label="Of the likeliest, up to (top-p)")
            seed = gr.Number(0, precision=0, minimum=0, maximum=2**31 - 1, label="Seed")
        beams = gr.Slider(2, 8, 4, step=1, label="Beams", visible=False)
    way.change(
        fn=None,
        inputs=way,
        outputs=[by_chance, beams],
        js="(way) => [{visible: way.startsWith('drawn'), __type__: 'update'}, "
        "{visible: way.startsWith('a search'), __type__: 'update'}]",
        api_visibility="private",
    )
    return [tokens, way, temperature, top_p, seed, beams]


def _read_settings(desk: Desk, chosen: tuple[Any, ...]) -> AnswerSettings:
    """What came from the browser, where anything may come from.

    Raises:
        ProbeError: it is nothing that the page can send.
    """
    tokens, way, temperature, top_p, seed, beams = chosen
    told = {"max_new_tokens": tokens, "way": _WAYS.get(way) if isinstance(way, str) else None}
    told |= {"temperature": temperature, "top_p": top_p, "seed": seed or 0, "beams": beams}
    settings = _converted(told, AnswerSettings)
    if settings.max_new_tokens > desk.limits.new_tokens:
        raise ProbeError(f"an answer has up to {desk.limits.new_tokens} tokens here")
    return settings


def _read_event(event: gr.EventData) -> MarkedPart:
    return _converted({name: _told(event, name) for name in MarkedPart.__struct_fields__}, MarkedPart)


def _told(event: gr.EventData, name: str) -> Any:
    """What the browser sent with an event under a name, or None."""
    try:
        return getattr(event, name, None)
    except TypeError:  # it sent something that has no names
        return None


def _converted(told: dict[str, Any], kind: Any) -> Any:
    try:
        return msgspec.convert(told, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ProbeError(f"this cannot be asked: {first_line(error)}") from None


def _first_card(before: Any) -> dict[str, str]:
    """The card of the plain answer, as the browser has it: shown to itself again, and nothing more."""
    cards = before.get("cards") if isinstance(before, dict) else None
    card = cards[0] if isinstance(cards, list) and cards and isinstance(cards[0], dict) else {}
    told = {name: str(card.get(name, ""))[:20_000] for name in ("question", "text", "note")}
    return {"title": "The whole picture", **told}


@contextmanager
def _failing_softly(*cards: dict[str, str]) -> Iterator[list[dict[str, Any]]]:
    """What the answer's part shows of an error that happened meanwhile; empty where there was none."""
    failed: list[dict[str, Any]] = []
    try:
        yield failed
    except ProbeError as error:
        failed.append({"state": "failed", "sentence": str(error), "cards": list(cards)})
    except Exception as error:
        traceback.print_exception(error)
        told = "Something went wrong in the app; what, stands where it was started."
        failed.append({"state": "failed", "sentence": told, "cards": list(cards)})


async def _shown(
    told_by_one: AsyncIterator[Heard | Answered], job: str, cards: list[dict[str, str]]
) -> AsyncIterator[tuple[dict[str, Any], Any]]:
    """What the answer's part shows at each step, and at the end what the viewer shows."""
    card = cards[-1]
    value: dict[str, Any] = {"job": job, "state": "waiting", "sentence": "", "notes": [], "cards": cards}
    async for told in told_by_one:
        if isinstance(told, Waiting):
            yield {**value, "sentence": _place(told)}, gr.skip()
        elif isinstance(told, Said):
            card["text"] = told.text
            yield {**value, "state": "running", "sentence": "" if told.text else "Looking …"}, gr.skip()
        elif isinstance(told, Failed):
            yield {**value, "state": "failed", "sentence": told.sentence, "job": ""}, gr.skip()
        elif isinstance(told, Answered):
            card |= {"text": told.done.text, "note": _note(told.done)}
            yield (
                {**value, "state": "done", "job": "", "notes": list(told.done.notes)},
                _run(told.run, cards),
            )


def _run(run: str, cards: list[dict[str, str]]) -> dict[str, Any]:
    """What the viewer shows, and whether it is the picture that it showed before."""
    return {"run": run, "again": len(cards) > 1}


def _job() -> str:
    return secrets.token_urlsafe(12)


def _place(waiting: Waiting) -> str:
    if waiting.starting:
        before = f" {waiting.place} before you." if waiting.place else ""
        return f"The model is being loaded.{before}"
    if waiting.place == 0:
        return "You are next."
    return f"Waiting: {waiting.place} {'question' if waiting.place == 1 else 'questions'} before yours."


def _note(done: Done) -> str:
    count = f"{done.tokens} token" + "s" * (done.tokens != 1)
    return " · ".join(filter(None, (count, f"{done.seconds:.1f} s", _ENDED[done.ended])))


def _buttons(value: dict[str, Any]) -> tuple[Any, Any]:
    busy = value.get("state") in ("waiting", "running")
    return gr.update(interactive=not busy), gr.update(interactive=busy)


def _owner(request: gr.Request) -> str:
    scope = getattr(request.request, "scope", {})
    return str(scope[OWNER])


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")
