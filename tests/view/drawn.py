"""Figures as pixels, and what stands in them."""

import io

import numpy as np
from PIL import Image

DPI = 200


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text")))


def pixels(figure):
    """[height, width, 3] as saved."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    return np.asarray(Image.open(png).convert("RGB")).astype(float)


def at(figure, axes, x, y):
    """Row and column, in ``pixels``, of a place in data coordinates."""
    across, down = axes.transData.transform((x, y)) * DPI / figure.dpi
    return round(figure.get_figheight() * DPI - down), round(across)


def cut_off(figure):
    """Texts that reach beyond the figure."""
    figure.draw_without_rendering()
    page, hidden = figure.bbox, _hidden(figure)
    found = figure.findobj(match=lambda a: hasattr(a, "get_text"))
    shown = [text for text in found if text.get_text().strip() and text not in hidden]
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown if text.get_visible()]
    return [told for told, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1]


def _hidden(figure):
    """Names of ticks that matplotlib keeps and does not draw: beyond the ends of an axis, or of one that is off."""
    found = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            beyond = [tick for tick in ticks if not axes.axison or not low <= tick.get_loc() <= high]
            found |= {label for tick in beyond for label in (tick.label1, tick.label2)}
    return found
