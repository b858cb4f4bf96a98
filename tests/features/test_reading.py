"""What is read from a store equals what plain safetensors and parquet readers find there, at any number of shards."""

import copy
import io
import json
import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

import llava_probe as lp
from llava_probe.features import store
from llava_probe.features.reading import Features, Ragged, ShardedTensor

COUNTS = (5, 0, 3, 4)
ROWS = sum(COUNTS)


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


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "features")


@pytest.fixture
def layer(folder):
    return Features(folder)["layer_16", "last_prompt"]


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


MASK = [row % 3 == 0 for row in range(ROWS)]
KEYS = [
    *(0, -1, ROWS - 1, np.int64(6), torch.tensor(6), True, None, ..., ()),
    *(slice(None), slice(1, 4), slice(3, 7), slice(5, 5), slice(-3, None), slice(0, None, 4), slice(2, 11, 3)),
    *([0, 11, 4, 4], [-1, 0], [], range(3), np.array([7, 2]), torch.tensor([[0, 9], [5, 1]])),
    *(MASK, np.array(MASK), torch.tensor(MASK), torch.zeros(ROWS, dtype=torch.bool)),
    *((slice(3, 8), slice(None, 3)), (5, 2), (slice(None), -1), (slice(None), [0, 2]), (slice(2, 9), None)),
    *(([0, 11], [1, 2]), ([0, 11], slice(1, 3)), (..., 0), (slice(3, 9), ..., 1), (torch.tensor(MASK), 2), (None, 3)),
    *(
        (slice(4), torch.tensor([0, 1, 2, 3])),
        torch.arange(ROWS * 6).reshape(ROWS, 6) % 5 == 0,
        (5, [1, 2]),
        (slice(None), None, [0, 1]),
    ),
]


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
def test_indexing_is_that_of_a_plain_tensor(layer, whole, key):
    found = layer[key]
    assert type(found) is torch.Tensor
    assert found.shape == whole[key].shape
    assert torch.equal(found, whole[key])


@pytest.mark.parametrize("key", [ROWS, -ROWS - 1, [0, ROWS], torch.tensor([-ROWS - 1]), [True], [0.5], "label"])
def test_rows_that_are_not_there_are_refused(layer, key):
    with pytest.raises(lp.ProbeError, match=r"row|mask"):
        layer[key]


def test_a_slice_within_a_shard_is_a_view_of_the_file(layer):
    assert layer[5:8].data_ptr() == layer[5:7].data_ptr() == layer[5].data_ptr()
    assert _mapped_at(layer[5:8].data_ptr()).endswith("00002.safetensors")


def test_one_shard_is_mapped_and_not_copied(tmp_path):
    features = Features(write(tmp_path / "one", (7,)))
    assert _mapped_at(features["layer_16", "last_prompt"].data_ptr()).endswith("00000.safetensors")


def _mapped_at(address):
    """The file that the kernel has mapped at this address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= address < stop:
            return line.split(maxsplit=5)[5]
    return "nothing"


def test_metadata_read_no_shard(folder):
    layer = Features(folder)["layer_16", "last_prompt"]
    for path in (folder / "shards").iterdir():
        path.unlink()
    assert tuple(layer.shape) == tuple(layer.size()) == (ROWS, 6)
    assert (len(layer), layer.ndim, layer.dim(), layer.numel(), layer.dtype) == (ROWS, 2, 2, ROWS * 6, torch.float32)
    assert (layer.device.type, layer.requires_grad, layer.is_cuda, layer.nbytes) == ("cpu", False, False, ROWS * 24)
    assert layer.is_floating_point() and torch.is_floating_point(layer) and "mean" in dir(layer)
    assert repr(layer) == str(layer) == f"ShardedTensor([{ROWS}, 6], torch.float32, in 3 shards)"
    assert {layer: 1}[layer] == 1
    with pytest.raises(lp.BadFile, match=r"00002\.safetensors is missing"):
        layer[5]


W = torch.randn(6, 2)
USES = {
    "float": lambda t: t.float(),
    "to": lambda t: t.to(torch.float64),
    "half": lambda t: t.half(),
    "mean": lambda t: t.mean(0),
    "cat": lambda t: torch.cat([t, t]),
    "stack": lambda t: torch.stack((t, t)),
    "matmul": lambda t: t @ W,
    "linear": lambda t: torch.nn.functional.linear(t, torch.nn.Parameter(W.T)),
    "add": lambda t: 1 + t,
    "clone": lambda t: t.clone(),
    "contiguous": lambda t: t.contiguous(),
    "detach": lambda t: t.detach(),
    "data": lambda t: t.data,
    "transposed": lambda t: t.T,
    "view": lambda t: t.view(-1),
    "split": lambda t: t.split(5)[1],
    "select": lambda t: t.index_select(0, torch.tensor([9])),
    "std": lambda t: torch.std(t, dim=0),
    "tensor": lambda t: torch.tensor(t),
    "as_tensor": lambda t: torch.as_tensor(t, dtype=torch.float64),
    "dlpack": lambda t: torch.from_dlpack(t),
    "numpy": lambda t: torch.from_numpy(t.numpy()),
    "asarray": lambda t: torch.from_numpy(np.asarray(t)),
    "float64 array": lambda t: torch.from_numpy(np.asarray(t, dtype=np.float64)),
    "numpy's mean": lambda t: torch.from_numpy(np.mean(t.numpy(), 0)),
    "tolist": lambda t: torch.tensor(t.tolist()),
    "rows": lambda t: torch.stack(list(t)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "strides": lambda t: torch.tensor(t.stride()),
    "out": lambda t: torch.add(t, 1, out=torch.empty(ROWS, 6)),
    "shared": lambda t: t.clone().share_memory_(),
    "float parts": lambda t: torch.func.vmap(torch.sum)(t),
}


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("use", USES)
def test_torch_and_numpy_see_a_plain_tensor(layer, whole, use):
    found, expected = USES[use](layer), USES[use](whole)
    assert type(found) is torch.Tensor
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_torch_saves_it_as_a_plain_tensor(layer, whole):
    saved = io.BytesIO()
    torch.save(layer, saved)
    back = torch.load(io.BytesIO(saved.getvalue()), weights_only=True)
    assert type(back) is torch.Tensor and torch.equal(back, whole)


@pytest.mark.parametrize(
    "write_to",
    [
        lambda t: t.add_(1),
        lambda t: t.zero_(),
        lambda t: t.__setitem__(0, 1.0),
        lambda t: t.__iadd__(1),
        lambda t: torch.add(torch.ones(ROWS, 6), 1, out=t),
        lambda t: torch.nn.init.zeros_(t),
        lambda t: torch._foreach_add_([t], 1),
    ],
)
def test_writing_to_it_is_refused(layer, whole, write_to):
    with pytest.raises(lp.BadInput, match=r"write to a feature store; take \.clone\(\)"):
        write_to(layer)
    assert torch.equal(layer, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loaders_read_it_row_by_row(layer, whole, workers):
    loader = DataLoader(TensorDataset(layer, torch.arange(ROWS)), batch_size=5, num_workers=workers)
    batches = list(loader)
    assert torch.equal(torch.cat([rows for rows, _ in batches]), whole)
    assert torch.equal(torch.cat([numbers for _, numbers in batches]), torch.arange(ROWS))


def test_scikit_learn_takes_it_as_a_matrix(layer, whole):
    check_array = pytest.importorskip("sklearn.utils").check_array
    np.testing.assert_array_equal(check_array(layer), whole.numpy())


def test_features_pickle_as_their_place(folder):
    pickled = pickle.dumps(Features(folder))
    assert len(pickled) < 500
    assert pickle.loads(pickled).keys() == Features(folder).keys()


def test_it_goes_to_another_process(layer, whole):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(torch.equal, (layer, whole))


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
    with pytest.raises(lp.BadInput, match="at least one row, not 0"):
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
    for key in (("layer_3", "last_prompt"), "layer_3", ("spans", "image")):
        with pytest.raises(lp.NotCaptured, match=r"is not in .*; it holds image_attention/last_prompt, layer_8/last_p"):
            features[key]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, r"holds no manifest\.json: it is no feature store"),
        ("{", r"manifest\.json is damaged, or no JSON"),
        ("\udcff", r"manifest\.json is damaged, or no JSON"),
        ('{"format": "zarr"}', r"is of something else"),
        ("[]", r"is of something else"),
        ('{"format": "llava_probe.features", "version": 9}', r"newer llava_probe \(version 9, here 1\)"),
        ('{"format": "llava_probe.features", "version": 1}', r"damaged: its 'settings' is missing or no dict"),
        (
            '{"format": "llava_probe.features", "version": 1, "settings": {}, "complete": true, "rows": 3,'
            ' "tensors": {}, "shards": [{"number": 0}]}',
            r'damaged: a shard in it is {"number": 0}',
        ),
        (
            '{"format": "llava_probe.features", "version": 1, "settings": {}, "complete": true, "rows": 3}',
            r"damaged: its 'shards' is missing or no list",
        ),
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
    with pytest.raises(lp.BadFile, match=r"layer_16/last_prompt of .*00002\.safetensors is not what the manifest says"):
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
