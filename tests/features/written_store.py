"""A store whose rows stand in several shards, one of them without any, and its truth by safetensors' own reader."""

import torch
from safetensors.torch import load_file

from llava_probe.features import store

COUNTS = (5, 0, 3, 4)
ROWS = sum(COUNTS)
MASK = [row % 3 == 0 for row in range(ROWS)]


def write(folder, counts=COUNTS, finished=True):
    made = torch.Generator().manual_seed(0)
    store.begin(folder, {"layers": [8, 16]})
    start = 0
    for number, count in enumerate(counts):
        lengths = torch.randint(0, 4, (count,), generator=made)
        stops = lengths.cumsum(0)
        spans = torch.stack([stops - lengths, stops], 1)
        if count > 1:
            spans[1] = spans[0]  # two questions about one picture
        values = int(stops[-1]) if count else 0
        tensors = {
            "layer_16/last_prompt": torch.randn(count, 6, generator=made),
            "layer_8/last_prompt": torch.randn(count, 6, generator=made).bfloat16(),
            "layer_16/image": torch.randn(values, 6, generator=made),
            "vision_22/patches": torch.randn(count * 2, 3, generator=made),
            "image_attention/last_prompt": torch.rand(count, 2, 3, generator=made),
            "spans/image": spans,
            "spans/patches": torch.tensor([[2 * row, 2 * row + 2] for row in range(count)]).reshape(-1, 2),
            "positions/image": torch.arange(values, dtype=torch.int32) + 7,
        }
        rows = [{"id": f"s{start + row}", "label": "cat" if row % 2 else "dog"} for row in range(count)]
        store.write_shard(folder, number, tensors, rows, [] if count else [{"id": "bad", "error": "no picture"}])
        start += count
    if finished:
        store.finish(folder)
    return folder


def truth(folder, name):
    """All rows of one tensor by safetensors' own reader."""
    loaded = [load_file(path) for path in sorted((folder / "shards").iterdir())]
    return torch.cat([tensors[name] for tensors in loaded if name in tensors])
