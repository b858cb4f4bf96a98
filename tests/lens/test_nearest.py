"""The nearest rows are those of a dense product in float64, however they are found."""

import numpy as np
import pytest
import torch

from llava_probe.lens.nearest import lengths_of, nearest, similarity

LAYERS, ROWS, WIDTH = 3, 150, 64


def dense(queries: torch.Tensor, states: list[torch.Tensor]) -> np.ndarray:
    """[N, R] the best cosine over the layers, in float64."""
    wide = queries.double().numpy()
    wide = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    layers = [layer.double().numpy() for layer in states]
    return np.stack([wide @ (layer / np.linalg.norm(layer, axis=1, keepdims=True)).T for layer in layers])


def drawn(dtype: torch.dtype, *, alike: float = 0.0) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Random queries and states; ``alike`` of each is the same vector, so that all cosines lie close together."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(WIDTH, generator=generator) * alike
    queries = (shared + torch.randn(130, WIDTH, generator=generator)).to(dtype)
    states = [
        ((shared + torch.randn(ROWS, WIDTH, generator=generator)) * (1 + 9 * layer)).to(dtype)
        for layer in range(LAYERS)
    ]
    return queries, states, torch.stack([lengths_of(layer) for layer in states])


@pytest.mark.parametrize("alike", [0.0, 3.0, 30.0], ids=["apart", "near", "all-but-one"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
def test_equals_a_dense_product_in_float64(dtype, alike):
    queries, states, lengths = drawn(dtype, alike=alike)
    found = nearest(queries, states, lengths, top=5)
    scores = dense(queries, states)
    best = np.sort(scores.max(0), axis=1)[:, ::-1][:, :5]
    assert np.abs(found.similarity.numpy() - best).max() < 2e-6
    told = scores[found.layers, np.arange(len(queries))[:, None], found.rows]
    assert np.abs(told - found.similarity.numpy()).max() < 2e-6
    assert all(len(set(rows)) == 5 for rows in found.rows.tolist())


def test_rounding_hides_no_row():
    """States that bfloat16 products cannot tell apart are ordered by their true cosines."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 512, generator=generator).bfloat16()
    steps = torch.linspace(0.05, 0.12, 400)[torch.randperm(400, generator=generator), None]
    states = (query.float() + steps * torch.randn(400, 512, generator=generator)).bfloat16()
    rough = (query @ states.T).float() / lengths_of(states)
    truth = dense(query, [states])[0, 0]
    assert set(rough[0].topk(5).indices.tolist()) != set(np.argsort(-truth)[:5].tolist())
    found = nearest(query, [states], lengths_of(states)[None], top=5)
    assert found.rows[0].tolist() == np.argsort(-truth)[:5].tolist()


def test_a_state_finds_itself_in_its_layer():
    _, states, lengths = drawn(torch.bfloat16)
    found = nearest(states[1][:70], states, lengths, top=1)
    assert found.rows[:, 0].tolist() == list(range(70)) and set(found.layers[:, 0].tolist()) == {1}
    assert torch.allclose(found.similarity, torch.ones(70, 1), atol=1e-6)


def test_only_some_rows_may_be_found():
    queries, states, lengths = drawn(torch.float32)
    among = torch.zeros(ROWS, dtype=torch.bool)
    among[[3, 90]] = True
    found = nearest(queries, states, lengths, top=5, among=among)
    assert found.rows.shape == (len(queries), 2)
    assert set(found.rows.flatten().tolist()) == {3, 90}


def test_a_state_of_nothing_is_near_to_nothing():
    found = similarity(torch.ones(1, 4), torch.zeros(2, 4), lengths_of(torch.zeros(2, 4)))
    assert found.tolist() == [[0.0, 0.0]]


def test_many_queries_are_taken_some_at_a_time(monkeypatch):
    queries, states, lengths = drawn(torch.bfloat16)
    whole = nearest(queries, states, lengths, top=3)
    monkeypatch.setattr("llava_probe.lens.nearest._HELD", 1)
    monkeypatch.setattr("llava_probe.lens.nearest._ROWS", 37)
    parts = nearest(queries, states, lengths, top=3)
    assert torch.equal(whole.rows, parts.rows)
    assert torch.allclose(whole.similarity, parts.similarity, atol=1e-6)
