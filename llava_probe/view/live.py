"""The page component in a notebook: still, or live beside a model.

    lp.view(trace)                     # explored as it is; any front end that shows HTML
    lp.view(trace, vlm)                # anywidget: Jupyter, VS Code, Colab, marimo; pip install 'llava_probe[notebook]'

Live, a method that was not computed yet is computed when it is chosen, for the tokens that are chosen; and a region
that was marked on the photograph can be taken away, or left alone, and the question asked again: the two answers stand
side by side. ``viewer.results`` has all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llava_probe.border import checked
from llava_probe.errors import BadInput, ProbeError, first_line
from llava_probe.model import VLM
from llava_probe.view.clicks import OFFERED, acted
from llava_probe.view.page.contents import CELL_BUDGET, payload
from llava_probe.view.page.document import as_text, script
from llava_probe.view.page.fragment import fragment
from llava_probe.view.page.runs import Result, gathered, with_traces

#: What the front end runs: the component, and its two ends of the line to here.
_RENDER = """
export default {
  render({ model, el }) {
    const act = (what) => model.send(what);
    const mounted = globalThis.llavaProbe.mount(el, model.get("parcel"), { offers: model.get("offers"), act });
    const update = () => mounted.update(model.get("parcel"), { offers: model.get("offers"), ...model.get("told") });
    model.on("change:told", update);
    return () => {
      model.off("change:told", update);
      mounted.remove();
    };
  },
};
"""


class Still:
    """Traces and maps as a notebook shows them: to be explored, nothing computed any more."""

    def __init__(self, results: list[Result]) -> None:
        self.results = results

    def _repr_html_(self) -> str:
        return fragment(self.results)

    def __repr__(self) -> str:
        return f"lp.view of {', '.join(map(repr, self.results))}"


@checked
def viewer(results: Result | Iterable[Result], vlm: VLM | None = None) -> Any:
    """Traces and maps as something to explore in a notebook.

    Args:
        results: a trace, a map, a comparison, or several, as for ``lp.page``.
        vlm: the model that made them; with it the viewer is live.

    Returns:
        What the last line of a cell shows: ``results`` are its traces, maps and comparisons, of a live one with those
        made since.

    Raises:
        BadInput: something that is none of these, or a live viewer without anywidget.
    """
    given = with_traces(results)
    gathered(given)
    return Still(given) if vlm is None else _live(given, vlm)


def _live(results: list[Result], vlm: VLM) -> Any:
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise BadInput(
            "a live viewer needs anywidget: pip install 'llava_probe[notebook]'; lp.view(trace) does not"
        ) from error

    class Live(anywidget.AnyWidget):  # type: ignore[misc]
        """The live viewer of one cell."""

        _esm = f"{script()}\n{_RENDER}"
        parcel = traitlets.Unicode().tag(sync=True)
        offers = traitlets.List(traitlets.Unicode(), list(OFFERED)).tag(sync=True)
        told = traitlets.Dict().tag(sync=True)

        def __init__(self) -> None:
            super().__init__()
            self.results = results
            self._show({})
            self.on_msg(lambda _, message, __: self._act(message))

        def _act(self, message: Any) -> None:
            try:
                self._show(acted(self.results, vlm, message))
            except Exception as error:  # the page waits for an answer, whatever it is
                told = str(error) if isinstance(error, ProbeError) else f"{type(error).__name__}: {first_line(error)}"
                self.told = {"message": told, "number": self.told.get("number", 0) + 1}
                if not isinstance(error, ProbeError):
                    raise

        def _show(self, selection: dict[str, Any]) -> None:
            self.parcel = as_text(payload(self.results, CELL_BUDGET))
            self.told = {"select": selection, "message": "", "number": self.told.get("number", 0) + 1}

    return Live()
