"""On a model that was really trained, with pictures whose truth is known, a probe finds what is there and only that."""

import warnings

import pytest

import llava_probe as lp
from llava_probe import tiny


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Colour at the object's own tokens and where the answer begins, trained and untrained."""
    rows = []
    for seed in range(80):
        scene = tiny.scene(seed)
        kinds = [thing.kind for thing in scene.objects]
        rows += [
            {
                "id": f"{seed}-{thing.kind}",
                "image": scene.image,
                "question": f"What colour is the {thing.kind}?",
                "mask": thing.mask,
                "colour": thing.colour,
                "thing": f"{thing.kind} {thing.place}",
            }
            for thing in scene.objects
            if thing.kind != "stop sign" and kinds.count(thing.kind) == 1
        ]
    stores = []
    for name, vlm in (("trained", lp.load()), ("untrained", lp.load(random_weights=0))):
        folder = tmp_path_factory.mktemp("stores") / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = {"layers": [2, 4], "positions": ["image_in_mask_mean", "last_prompt"]}
            stores.append(lp.extract(vlm, rows, folder, **wanted, batch_size=4))
    return lp.fit_probe(stores[0], "colour", types="thing", random_features=stores[1], draws=2)


def test_colour_is_read_at_the_tokens_of_the_coloured_object(sweep):
    cell = sweep["layer_4", "image_in_mask_mean"]
    assert cell.low > 0.95
    assert cell.selectivity_low > 0.4


def test_the_answer_is_read_where_it_begins_and_only_in_the_trained_model(sweep):
    cell = sweep["layer_4", "last_prompt"]
    assert cell.low > 0.95
    assert cell.selectivity_low > 0.4
    assert cell.random_model < cell.majority + 0.15


def test_pixels_suffice_at_the_objects_own_tokens(sweep):
    """A linear reader of a few patches' mean colour needs no training of the model: the control says so."""
    assert sweep["layer_4", "image_in_mask_mean"].random_model > 0.8


def test_before_the_answer_is_known_selectivity_is_low_however_high_the_score(sweep):
    cell = sweep["layer_2", "last_prompt"]
    assert cell.low > cell.majority
    assert cell.selectivity < 0.25 < sweep["layer_4", "last_prompt"].selectivity
    assert sweep.compare(("layer_4", "last_prompt"), ("layer_2", "last_prompt")).low > 0.1
