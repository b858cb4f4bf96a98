"""One digest over every bit of a model: the same for the same numbers, another for any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from llava_probe.inside.weights import _ROW, _SMALL, tensor_digest, weights_digest
from tests.models import random_llava

LARGE = 8 * _SMALL + 6  # words enough that only some are looked at, and an end that fills no word


class Held(nn.Module):
    """Tensors of each kind: large, odd, of one number, of none, transposed, a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large = nn.Parameter(torch.randn(LARGE, dtype=torch.float32))
        self.halved = nn.Parameter(torch.randn(7, 3).bfloat16())
        self.one = nn.Parameter(torch.tensor(0.5))
        self.none = nn.Parameter(torch.empty(0, 4))
        self.turned = nn.Parameter(torch.randn(6, 5).T)
        self.register_buffer("mask", torch.tensor([True, False, True]), persistent=False)
        self.register_buffer("wide", torch.randn(6, dtype=torch.float64))


def digest(model: nn.Module) -> str:
    return weights_digest(model).sha256


def test_equal_numbers_have_equal_digests_wherever_they_lie():
    one, other = Held(), Held()
    assert weights_digest(one) == weights_digest(other)
    assert digest(one) == weights_digest(one, anew=True).sha256
    values = torch.arange(3 * _ROW, dtype=torch.float32)
    shifted = torch.cat([torch.zeros(1), values])[1:]  # begins within a word
    apart = torch.stack([values, -values], 1)[:, 0]
    assert tensor_digest(values) == tensor_digest(shifted) == tensor_digest(apart)


@pytest.mark.parametrize("kept", [True, False])
def test_any_bit_anywhere_makes_another_digest(kept):
    model = Held()
    before = digest(model)
    found = {before}
    for tensor in (*model.parameters(), *model.buffers()):
        for place in {0, tensor.numel() // 2, tensor.numel() - 1} if tensor.numel() else ():
            for bit in {0, 8 * tensor.itemsize - 1} if tensor.dtype != torch.bool else {0}:
                with torch.no_grad():
                    index = np.unravel_index(place, tensor.shape)
                    was = tensor[index].clone()
                    raw = was.clone().reshape(1).view(torch.uint8)
                    raw[bit // 8] ^= 1 << bit % 8
                    tensor[index] = raw.view(tensor.dtype)[0]
                    changed = digest(model) if kept else weights_digest(model, anew=True).sha256
                    assert changed not in found, (tuple(tensor.shape), place, bit)
                    found.add(changed)
                    tensor[index] = was
    assert digest(model) == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_order_and_sign_count(dtype):
    """Signs are the highest bits, which a plain sum of products forgets in pairs."""
    values = torch.arange(1, 2 * _ROW + 1).to(dtype)
    negated = [torch.where(torch.arange(len(values)) % every == 0, -values, values) for every in (1, 2, 4)]
    turned = [values.flip(0), values.roll(1), values.roll(_ROW), torch.cat([values[_ROW:], values[:_ROW]])]
    told = [tensor_digest(one) for one in (values, *negated, *turned[:3])]
    assert len(set(told)) == len(told)
    assert tensor_digest(turned[2]) == tensor_digest(turned[3])


def test_the_digest_is_a_sum_of_words_by_place(monkeypatch):
    """Against arithmetic in whole numbers, as long as they get."""
    from llava_probe.inside.weights import _odd, _sums

    rng = np.random.default_rng(0)
    words = rng.integers(-(2**63), 2**63, 2 * _ROW + 5, dtype=np.int64)
    low, high, rows = (_odd(which, _ROW, torch.device("cpu")).tolist() for which in (0, 1, 2))
    expected = [0, 0]
    for place, word in enumerate(words.tolist()):
        row, column = divmod(place, _ROW)
        expected[0] += rows[row] * low[column] * word
        expected[1] += rows[row] * high[column] * (word >> 32)
    wrapped = [(total + 2**63) % 2**64 - 2**63 for total in expected]
    assert _sums(torch.from_numpy(words)).tolist() == wrapped
    assert all(number % 2 for number in low + high + rows)
    monkeypatch.setattr("llava_probe.inside.weights._row_sums", lambda words: on_a_card(words, _odd))
    assert _sums(torch.from_numpy(words)).tolist() == wrapped


def on_a_card(words, odd):
    """How a device sums that has no product of whole numbers' matrices."""
    from llava_probe.inside.weights import _summed

    return _summed(words, *(odd(which, _ROW, words.device)[: words.shape[1]] for which in (0, 1)))


def test_what_is_remembered_is_not_read_again(monkeypatch):
    read = []
    sums = "llava_probe.inside.weights._sums"
    from llava_probe.inside import weights

    own = weights._sums
    monkeypatch.setattr(sums, lambda tensor: (read.append(tensor), own(tensor))[1])
    model = Held()
    digest(model)
    assert len(read) == len(list(model.parameters())) + len(list(model.buffers()))
    read.clear()
    digest(model)
    assert not read
    with torch.no_grad():
        model.halved[0, 0] += 1
    digest(model)
    assert [id(tensor) for tensor in read] == [id(model.halved)]


def test_a_tensor_that_is_written_past_its_count_is_seen():
    model = Held()
    before = digest(model)
    model.large.data.mul_(2)
    assert digest(model) != before
    model.large.data.div_(2)
    assert digest(model) == before
    model.large.data[LARGE // 3] += 1
    assert weights_digest(model, anew=True).sha256 != before


def test_a_tensor_in_anothers_place_is_seen():
    model = Held()
    before = digest(model)
    model.halved = nn.Parameter(model.halved.detach() + 1)
    assert digest(model) != before
    model.halved = nn.Parameter(Held().halved.detach())
    assert digest(model) == before
    model.halved.data = model.halved.data.float()
    assert digest(model) != before


def test_tensors_of_inference_mode_are_read_each_time():
    with torch.inference_mode():
        model = Held()
        before = digest(model)
        model.large[LARGE // 3] += 1
        assert digest(model) != before


def test_what_cannot_be_read_is_named():
    model = Held()
    model.halved = nn.Parameter(model.halved.to("meta"))
    assert weights_digest(model).unseen == ("halved",)
    assert digest(model) == digest(model)


def test_a_quantisers_scales_are_part_of_a_weight():
    class State:
        def __init__(self, scale: float) -> None:
            self.absmax = torch.tensor([scale])

    told = []
    for scale in (1.0, 2.0, 1.0):
        model = Held()
        model.halved.quant_state = State(scale)
        told.append(digest(model))
    assert told[0] == told[2] != told[1]


def test_the_parts_of_a_subclass_are_read():
    """A tensor of two, as torchao's and distributed ones are."""
    from torch.testing._internal.two_tensor import TwoTensor

    told = []
    for scale in (1.0, 2.0, 1.0):
        model = Held()
        model.halved = nn.Parameter(TwoTensor(torch.ones(3), torch.full((3,), scale)))
        told.append(digest(model))
    assert told[0] == told[2] != told[1]


def test_a_parametrised_weight_is_another_model():
    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model = random_llava()
    before = digest(model)
    parametrize.register_parametrization(model.lm_head, "weight", Twice())
    assert digest(model) != before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_tells_the_same():
    model = Held()
    before = digest(model)
    assert digest(model.to("cuda")) == before
