"""A column of features in a plane: scikit-learn's principal components, coloured by the index."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

import llava_probe as lp
from llava_probe.view import feature_figures
from tests.probes.probe_store import coloured
from tests.view.drawn import texts


def test_points_are_principal_components_in_the_groups_of_a_column():
    store = coloured()
    figure = lp.figures.features(store, "layer_2", "last_prompt", by="colour")
    expected = PCA(2).fit(store["layer_2", "last_prompt"].double().numpy())
    places = expected.transform(store["layer_2", "last_prompt"].double().numpy())
    colours = np.array(store.column("colour"))
    for line in figure.axes[0].lines:
        own = places[colours == line.get_label()]
        np.testing.assert_allclose(np.abs(line.get_xydata()), np.abs(own), atol=1e-4)
    told = texts(figure)
    assert f"component 1 ({expected.explained_variance_ratio_[0]:.0%})" in told
    assert set(colours) <= set(told.split())


def test_numbers_have_a_colour_bar():
    store = coloured(number=[float(row) for row in range(120)])
    figure = lp.figures.features(store, "layer_1", "last_prompt", by="number")
    np.testing.assert_allclose(lp.figures.mappable(figure).get_array(), range(120))


def test_few_rows_are_chosen_by_chance_and_told():
    figure = lp.figures.features(coloured(), "layer_1", "last_prompt", most=20)
    assert len(figure.axes[0].lines[0].get_xdata()) == 20
    assert "20 of 120 rows" in texts(figure)


def test_what_cannot_be_drawn_is_a_sentence(monkeypatch):
    store = coloured(many=[f"name {row}" for row in range(120)])
    with pytest.raises(lp.BadInput, match="at most 24 names"):
        lp.figures.features(store, "layer_1", "last_prompt", by="many")
    with pytest.raises(lp.BadInput, match="'pca' or 'umap'"):
        lp.figures.features(store, "layer_1", "last_prompt", method="tsne")
    with pytest.raises(lp.BadInput, match="three rows"):
        lp.figures.features(store, "layer_1", "last_prompt", most=2)
    monkeypatch.setattr(feature_figures, "find_spec", lambda name: None)
    with pytest.raises(lp.BadInput, match="pip install umap-learn"):
        lp.figures.features(store, "layer_1", "last_prompt", method="umap")
