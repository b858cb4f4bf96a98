"""A parquet file of a few kilobytes that stands for gigabytes is refused before it is one."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import llava_probe as lp
from llava_probe.features import expanding
from llava_probe.features.expanding import table_batches
from llava_probe.features.tables import read_table

HELD = 16_000_000  # less than in earnest, for the tests' sake
LONG = "a" * 1_000_000


@pytest.fixture(autouse=True)
def held(monkeypatch):
    monkeypatch.setattr(expanding, "HELD", HELD)


def repeated(value, times):
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, np.int32)), [value])


def listed(values):
    return pa.ListArray.from_arrays([0, len(values)], values)


BOMBS = {
    "a value by its number": (repeated(LONG, 100_000), {"dictionary_pagesize_limit": 2**30}, "expands to more than"),
    "a value in a list": (
        listed(repeated(LONG, 3000)),
        {"dictionary_pagesize_limit": 2**30},
        r"holds 3,000.*a row may hold 16.0 MB",
    ),
    "numbers in a list": (listed(pa.array(np.zeros(10**6, np.int8))), {}, "holds 1,000,000 values"),
    "a page": (pa.array(["a" * (HELD + 1)]), {"use_dictionary": False}, r"expands from .* bytes to 16.0 MB"),
    "what begins alike": (
        pa.array(["a" * 100_000] * 200),
        {"use_dictionary": False, "column_encoding": {"q": "DELTA_BYTE_ARRAY"}},
        "expands to more than",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_sentence(tmp_path, name):
    column, options, told = BOMBS[name]
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"q": column}), path, compression="zstd", **options)
    assert path.stat().st_size < 20_000
    with pytest.raises(lp.BadInput, match=told):
        for batch in table_batches(path, 64):
            assert batch.nbytes <= HELD
    with pytest.raises(lp.BadFile, match=told):
        read_table(path)


def test_what_people_keep_is_read_as_it_is(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "image": {"bytes": rng.bytes(100_000), "path": None},
            "talk": [{"from": "human", "value": f"what is {row}?"}] * 3,
            "states": rng.random(64).tolist(),
            "label": row % 2,
        }
        for row in range(200)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert [row for batch in table_batches(tmp_path / "rows.parquet", 64) for row in batch.to_pylist()] == rows
