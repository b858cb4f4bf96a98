"""What is read from a store equals what plain safetensors and parquet readers find there, at any number of shards."""

import json
import os
import pickle
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import llava_probe as lp
from llava_probe.features import store
from llava_probe.features.manifest import manifest_bytes
from llava_probe.features.reading import Features, Ragged
from llava_probe.features.sharded import ShardedTensor
from tests.features.written_store import COUNTS, MASK, ROWS, truth, write


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "features")


@pytest.fixture
def whole(folder):
    return truth(folder, "layer_16/last_prompt")


def test_opening_tells_what_there_is(folder):
    features = Features(folder)
    assert len(features) == ROWS
    assert features.complete
    assert features.manifest["settings"] == {"layers": [8, 16]}
    assert features.keys() == (
        ("image_attention", "last_prompt"),
        ("layer_8", "last_prompt"),
        ("layer_16", "image"),
        ("layer_16", "last_prompt"),
        ("vision_22", "patches"),
    )
    assert "12 rows; image_attention/last_prompt, layer_8/last_prompt" in repr(features)


@pytest.mark.parametrize("name", ["layer_16/last_prompt", "layer_8/last_prompt", "image_attention/last_prompt"])
@pytest.mark.parametrize("counts", [COUNTS, (7,), (0, 7)])
def test_a_layer_equals_safetensors_own_reading(tmp_path, name, counts):
    folder = write(tmp_path / "other", counts)
    found = Features(folder)[tuple(name.split("/"))]
    assert isinstance(found, torch.Tensor)
    assert isinstance(found, ShardedTensor) == (len([count for count in counts if count]) > 1)
    expected = truth(folder, name)
    assert (found.shape, found.dtype, len(found)) == (expected.shape, expected.dtype, len(expected))
    assert torch.equal(found, expected)


def test_features_pickle_as_their_place(folder):
    pickled = pickle.dumps(Features(folder))
    assert len(pickled) < 500
    assert pickle.loads(pickled).keys() == Features(folder).keys()


def test_ragged_rows_are_their_spans(folder):
    ragged = Features(folder)["layer_16", "image"]
    assert isinstance(ragged, Ragged)
    assert len(ragged) == ROWS
    expected, places = [], []
    for path in sorted((folder / "shards").iterdir()):
        tensors = load_file(path)
        for start, stop in tensors["spans/image"].tolist() if tensors else ():
            expected.append(tensors["layer_16/image"][start:stop])
            places.append(tensors["positions/image"][start:stop])
    assert all(torch.equal(found, rows) for found, rows in zip(ragged, expected, strict=True))
    assert torch.equal(ragged[-1], expected[-1])
    assert all(torch.equal(ragged.positions_of(row), places[row]) for row in range(ROWS))
    assert torch.equal(ragged.values, truth(folder, "layer_16/image"))
    assert ragged[0].data_ptr() == ragged[1].data_ptr()  # the picture that rows 0 and 1 share
    means = torch.stack([rows.mean(0) for rows in expected])
    torch.testing.assert_close(ragged.mean(), means, equal_nan=True)
    with pytest.raises(lp.OutOfRange, match="row 12 is not there; there are 12"):
        ragged[ROWS]


def test_values_before_the_language_model_have_no_positions(folder):
    patches = Features(folder)["vision_22", "patches"]
    assert torch.equal(torch.cat(list(patches)), truth(folder, "vision_22/patches"))
    with pytest.raises(lp.NotCaptured, match="no positions in a sequence"):
        patches.positions_of(0)


@pytest.mark.parametrize("rows", [None, slice(3, 9), [11, 0], np.array(MASK)])
def test_numpy_gives_float32_of_its_own(folder, rows):
    features = Features(folder)
    found = features.numpy("layer_8", "last_prompt", rows)
    expected = truth(folder, "layer_8/last_prompt").float().numpy()[slice(None) if rows is None else rows]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    found += 1
    np.testing.assert_array_equal(features.numpy("layer_8", "last_prompt", rows), expected)


def test_batches_cover_all_rows_in_order(folder, whole):
    batches = list(Features(folder).batches("layer_16", "last_prompt", size=5))
    assert [(rows.start, rows.stop) for rows, _ in batches] == [(0, 5), (5, 10), (10, 12)]
    assert torch.equal(torch.cat([tensor for _, tensor in batches]), whole)


def test_ragged_positions_are_no_matrix(folder):
    with pytest.raises(lp.BadInput, match=r"layer_16/image is ragged"):
        Features(folder).numpy("layer_16", "image")
    with pytest.raises(lp.BadInput, match=r"a whole number from 1 to .*; got 0"):
        list(Features(folder).batches("layer_16", "last_prompt", size=0))


def test_the_index_stands_in_the_order_of_the_rows(folder):
    features = Features(folder)
    expected = [row for path in sorted((folder / "index").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert features.table().to_pylist() == expected
    assert features.column("id") == [f"s{row}" for row in range(ROWS)]
    assert features.table(["shard", "id"]).column_names == ["shard", "id"]
    assert features.errors().to_pylist() == [{"id": "bad", "error": "no picture", "shard": 1}]
    with pytest.raises(lp.NotCaptured, match=r"has no colour; it has id, label, shard, shard_row"):
        features.column("colour")


def test_pandas_and_datasets_hold_the_same(folder, whole):
    pytest.importorskip("pandas")
    pytest.importorskip("datasets")
    features = Features(folder)
    assert features.to_pandas()["label"].tolist() == features.column("label")
    made = features.to_dataset([("layer_16", "last_prompt"), ("layer_16", "image")])
    assert made["id"][:] == features.column("id")
    np.testing.assert_array_equal(np.array(made["layer_16/last_prompt"][:], dtype=np.float32), whole.numpy())
    ragged = [np.array(rows, np.float32).reshape(-1, 6) for rows in made["layer_16/image"][:]]
    assert all(np.array_equal(rows, found) for rows, found in zip(ragged, features["layer_16", "image"], strict=True))


def test_columns_whose_types_differ_between_shards_are_read_together(tmp_path):
    store.begin(tmp_path, {})
    columns = [
        {"score": None, "number": 1, "answer": 1, "meta": {"a": 1}, "only": [1]},
        {"score": 0.5, "number": 1.5, "answer": "two", "meta": {"b": "x"}},
        {"score": None, "number": 2**60 + 1, "answer": None, "meta": None, "more": True},
    ]
    for number, row in enumerate(columns):
        store.write_shard(tmp_path, number, {"layer_0/last": torch.zeros(1, 2)}, [row])
    features = Features(tmp_path)
    assert features.column("score") == [None, 0.5, None]
    assert [json.loads(text) for text in features.column("number")] == [1, 1.5, 2**60 + 1]  # no float64 holds all three
    assert features.column("answer") == ["1", '"two"', None]
    assert features.column("meta") == [{"a": 1, "b": None}, {"a": None, "b": "x"}, None]
    assert features.column("only") == [[1], None, None]
    assert features.column("more") == [None, None, True]


def test_an_unfinished_store_opens_with_what_is_whole(tmp_path):
    folder = write(tmp_path / "features", finished=False)
    (folder / "index/00003.parquet").unlink()
    features = Features(folder)
    assert not features.complete
    assert len(features) == 8
    assert len(features["layer_16", "last_prompt"]) == len(features.table()) == len(features["layer_16", "image"]) == 8
    assert features.errors().to_pylist() == [{"id": "bad", "error": "no picture", "shard": 1}]
    features.verify()
    assert "unfinished" in repr(features)


def test_an_empty_store_opens(tmp_path):
    store.begin(tmp_path, {})
    features = Features(tmp_path)
    assert (len(features), features.keys(), features.table().num_rows, features.errors().num_rows) == (0, (), 0, 0)


def test_a_key_that_is_not_there_is_named_with_those_that_are(folder):
    features = Features(folder)
    for key in (("layer_3", "last_prompt"), ("spans", "image")):
        with pytest.raises(lp.NotCaptured, match=r"is not in .*; it holds image_attention/last_prompt, layer_8/last_p"):
            features[key]
    with pytest.raises(lp.NotCaptured, match=r"'layer_3' is not in .*; it holds image_attention/last_prompt"):
        features["layer_3"]
    with pytest.raises(lp.BadInput, match=r"Features\[\.\.\.\].* takes text or a pair"):
        features[3]


SHARD = {"number": 0, "rows": 2, "batch_size": 8, "errors_sha256": None}
SHARD |= {"tensors_sha256": 64 * "0", "index_sha256": 64 * "0"}
TENSOR = {"dtype": "float32", "shape": [None, 3], "ragged": False}


def told(**changed):
    """The manifest of a finished store without a shard, with its hash, of which something is otherwise."""
    made = {"settings": {}, "decided": {}, "complete": True, "rows": 0, "shards": [], "tensors": {}}
    return manifest_bytes({**made, "errors_sha256": 64 * "0", **changed}).decode()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, r"holds no manifest\.json: it is no feature store"),
        ("{", r"manifest\.json is damaged, or no JSON"),
        ("\udcff", r"manifest\.json is damaged, or no JSON"),
        ('{"format": "zarr"}', r"is of something else"),
        ("[]", r"is of something else"),
        ('{"format": "llava_probe.features", "version": 9}', r"a newer llava_probe \(version 9, here 2\)"),
        ('{"format": "llava_probe.features", "version": 1}', r"an older llava_probe \(version 1, here 2\)"),
        ('{"format": "llava_probe.features", "version": 2}', r"damaged: Object missing required field `sha256`"),
        (told(shards=[{"number": 0}]), r"damaged: Object missing required field `rows` - at `\$.shards\[0\]`"),
        (told(rows="3"), r"damaged: Expected `int`, got `str` - at `\$.rows`"),
        (told(surprise=1), r"damaged: Object contains unknown field `surprise`"),
        (told(rows=3), r"contradicts itself: it has 3 rows, its shards 0"),
        (told(tensors={"layer_1/x": TENSOR}), r"contradicts itself: it has 0 rows and 1 tensors"),
        (told(rows=2, shards=[{**SHARD, "number": 1}]), r"contradicts itself: its shards are numbered 1"),
        (
            told(rows=2, shards=[SHARD], tensors={"layer_1": TENSOR}),
            r"contradicts itself: no store has a tensor layer_1 of float32",
        ),
        (
            told(rows=2, shards=[SHARD], tensors={"layer_1/x": {**TENSOR, "ragged": True}}),
            r"contradicts itself: layer_1/x does not fit the others",
        ),
        (told().replace('"rows": 0', '"rows": 1'), r"damaged or was changed: its sha256 is not that of its contents"),
    ],
)
def test_what_is_no_store_says_why(tmp_path, manifest, message):
    if manifest is not None:
        (tmp_path / "manifest.json").write_bytes(manifest.encode("utf-8", "surrogateescape"))
    with pytest.raises(lp.BadFile, match=message):
        Features(tmp_path)


def test_a_place_that_is_no_folder_says_so(tmp_path):
    with pytest.raises(lp.BadFile, match="is not there; a feature store is a folder"):
        Features(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(lp.BadFile, match="is a file; a feature store is a folder"):
        Features(tmp_path / "file")


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_cut_shard_is_named_when_it_is_read(folder, size):
    path = folder / "shards/00002.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    layer = Features(folder)["layer_16", "last_prompt"]
    assert len(layer[:5]) == 5
    with pytest.raises(lp.BadFile, match=r"00002\.safetensors is cut short"):
        layer[:6]


def test_a_shard_of_another_shape_is_named(folder, tmp_path):
    other = write(tmp_path / "other", (4,))
    (other / "shards/00000.safetensors").rename(folder / "shards/00002.safetensors")
    with pytest.raises(lp.BadFile, match=r"00002\.safetensors has 4 rows, 3 were expected"):
        Features(folder)["layer_16", "last_prompt"].sum()
    kept = load_file(folder / "shards/00002.safetensors")
    kept = {name: tensor[:3].half() if name == "layer_8/last_prompt" else tensor[:3] for name, tensor in kept.items()}
    save_file({name: kept[name] for name in kept if "/image" not in name}, folder / "shards/00002.safetensors")
    with pytest.raises(lp.BadFile, match=r"the layer_16/image of .*00002\.safetensors is not what the manifest says"):
        Features(folder)["layer_16", "last_prompt"].sum()


def test_a_damaged_index_is_named(folder):
    (folder / "index/00002.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(lp.BadFile, match=r"index/00002\.parquet is damaged"):
        Features(folder).table()
    (folder / "index/00002.parquet").unlink()
    with pytest.raises(lp.BadFile, match=r"index/00002\.parquet is missing"):
        Features(folder).table()


@pytest.mark.parametrize("name", ["shards/00002.safetensors", "index/00002.parquet"])
def test_checksums_name_the_damaged_shard(folder, name):
    features = Features(folder)
    features.verify()
    data = bytearray((folder / name).read_bytes())
    data[-100] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(lp.BadFile, match=name.replace(".", r"\.") + " is damaged: its checksum"):
        features.verify()


def test_tensors_are_read_without_pyarrow(folder, whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    features = Features(folder)
    assert torch.equal(features["layer_16", "last_prompt"], whole)
    with pytest.raises(lp.BadInput, match=r"pip install 'llava_probe\[features\]'"):
        features.table()
