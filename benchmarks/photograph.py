"""What ``llava-probe run`` does with a phone's photograph of 12 megapixels: time over generation, and files.

    python benchmarks/photograph.py

The picture is made here: soft shapes, edges and a sensor's noise, about as hard to compress as a photograph.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from PIL import Image

import llava_probe as lp
from llava_probe.view.folder import write_run

WIDTH, HEIGHT = 4032, 3024
ROUNDS = 3


def photograph() -> Image.Image:
    """Twelve megapixels, reproducible."""
    draws = np.random.default_rng(0)
    soft = Image.fromarray(draws.integers(0, 256, (12, 16, 3), np.uint8)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(draws.integers(0, 256, (378, 504, 3), np.uint8)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )
    picture = 0.7 * np.asarray(soft, np.float32) + 0.3 * np.asarray(fine, np.float32)
    picture += 2.0 * draws.standard_normal(picture.shape, dtype=np.float32)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photograph.jpg"
        photograph().save(path, quality=92)
        print(f"a JPEG of {WIDTH} × {HEIGHT}, {path.stat().st_size / 1e6:.1f} MB; 'Describe the image.', 64 tokens")
        vlm = lp.load()
        for number in range(ROUNDS):
            start = time.perf_counter()
            trace = vlm.generate(path, "Describe the image.")
            asked = time.perf_counter() - start
            start = time.perf_counter()
            written = write_run(trace, Path(folder) / f"out{number}")
            drawn = time.perf_counter() - start
            size = sum(file.stat().st_size for file in written) / 1e6
            print(
                f"round {number}: generate {asked:.1f} s, writing {drawn:.1f} s, {len(written)} files of {size:.1f} MB "
                f"({sum('maps' in file.parts for file in written)} of maps; "
                + ", ".join(
                    f"{file.name} {file.stat().st_size / 1e6:.1f}"
                    for file in written
                    if file.stat().st_size > 1e6 and file.suffix not in (".png", ".jpg")
                )
                + ")"
            )


if __name__ == "__main__":
    main()
