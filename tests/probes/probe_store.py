"""A feature store in memory, with the protocol of ``lp.Features``, and data whose truth is known."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pyarrow
import torch


class Ragged:
    """Rows of several tokens each."""

    def __init__(self, rows):
        counts = [len(row) for row in rows]
        ends = np.cumsum(counts)
        self.values = torch.cat(rows)
        self.spans = torch.from_numpy(np.stack([ends - counts, ends], axis=1))

    def __len__(self):
        return len(self.spans)

    def __getitem__(self, row):
        low, high = self.spans[row].tolist()
        return self.values[low:high]


@dataclass
class Store:
    """Cells by (layer, position) and columns by name."""

    cells: dict
    columns: dict
    manifest: dict = field(default_factory=dict)

    def keys(self):
        return tuple(self.cells)

    def __getitem__(self, key):
        return self.cells[key]

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def numpy(self, layer, position, rows=None):
        cell = self.cells[layer, position]
        return (cell if rows is None else cell[torch.as_tensor(rows)]).float().numpy()

    def table(self):
        return pyarrow.table(self.columns)

    def column(self, name):
        return list(self.columns[name])


COLOURS = ("red", "blue", "green")


def coloured(pictures=60, each=2, width=12, strength=1.0, seed=0, classes=COLOURS, dtype=torch.float32, **columns):
    """Rows of ``each`` questions a picture; at layer_2 the colour is there, at layer_1 half as strongly, at 0 not."""
    generator = np.random.default_rng(seed)
    rows = pictures * each
    labels = generator.integers(0, len(classes), rows)
    directions = generator.standard_normal((len(classes), width))
    cells = {}
    for layer, share in enumerate((0.0, 0.5, 1.0)):
        noise = generator.standard_normal((rows, width)) * np.linspace(0.5, 2, width) + 3
        hidden = noise + share * strength * directions[labels]
        cells[f"layer_{layer}", "last_prompt"] = torch.from_numpy(hidden).to(dtype)
    table = {
        "id": [f"row{row}" for row in range(rows)],
        "row": list(range(rows)),
        "picture": [f"picture{row // each}.png" for row in range(rows)],
        "question": [f"question {row % 7}?" for row in range(rows)],
        "colour": [classes[label] for label in labels],
    }
    return Store(cells, table | columns)


def fingerprint():
    """All numbers of a small sweep, to the last digit, as text."""
    from llava_probe.probes import fit_probe

    sweep = fit_probe(coloured(pictures=24), "colour", layers=[1], bootstrap=20, draws=2)
    cell = sweep["layer_1", "last_prompt"]
    weights = sweep.probe("layer_1", "last_prompt").weights.numpy().tobytes()
    numbers = (cell.predicted.tolist(), cell.control_draws, cell.shuffled_draws, cell.low, cell.strengths)
    return f"{sweep} {numbers} {hashlib.sha256(weights).hexdigest()}"
