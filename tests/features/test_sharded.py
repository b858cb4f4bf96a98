"""A layer in several files is to torch and numpy what a plain tensor is, and reads the rows that it is asked for."""

import copy
import io
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import llava_probe as lp
from llava_probe.features.reading import Features
from tests.features.written_store import MASK, ROWS, truth, write


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "features")


@pytest.fixture
def layer(folder):
    return Features(folder)["layer_16", "last_prompt"]


@pytest.fixture
def whole(folder):
    return truth(folder, "layer_16/last_prompt")


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


def test_it_goes_to_another_process(layer, whole):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(torch.equal, (layer, whole))
