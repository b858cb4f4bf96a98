"""What a run prints."""

import dataclasses
import io

import torch
from rich.console import Console

import llava_probe as lp
from llava_probe.view.terminal import show_map
from tests.synthetic import causal, synthetic_trace


def printed(trace, m):
    told = io.StringIO()
    show_map(trace, m, console=Console(file=told, width=100))
    return told.getvalue()


def test_a_map_that_is_the_same_all_over_names_no_place():
    trace = synthetic_trace(attention=causal())
    m = lp.attention_map(trace)
    m = dataclasses.replace(m, about={**m.about, "forwards": 1, "backwards": 0})
    x, y = m.peak(0)
    place = f"{x:.0f}, {y:.0f}"
    assert place in printed(trace, m)
    flat = dataclasses.replace(m, values=torch.zeros_like(m.values))
    x, y = flat.peak(0)
    assert "–" in printed(trace, flat)
    assert f"{x:.0f}, {y:.0f}" not in printed(trace, flat)
