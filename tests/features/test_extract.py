"""What ``lp.extract`` keeps is what a trace of the same sample says, whatever was shared on the way."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import llava_probe as lp
from llava_probe import tiny
from llava_probe.cli import app
from llava_probe.features.extractor import Extractor, Recipe
from llava_probe.features.samples import read_samples
from llava_probe.features.trial import Sharing

LAYERS = (2, 6)


@pytest.fixture(scope="module")
def vlm():
    return lp.load()


@pytest.fixture(scope="module")
def rows():
    """Five held-out scenes, three questions each, with the mask of what is asked about."""
    made = []
    for seed in range(5):
        scene = tiny.scene(seed)
        for question in [q for q in scene.questions if q.kind in ("colour", "shape")][:3]:
            thing = scene.objects[question.objects[0]]
            made.append(
                {
                    "id": f"{seed}-{question.question}",
                    "image": scene.image,
                    "question": question.question,
                    "answer": question.answer,
                    "mask": thing.mask,
                    "colour": thing.colour,
                    "word": question.question.split()[-1].rstrip("?"),
                }
            )
    return made


def traced(vlm, row, **capture):
    kept = lp.Capture(positions="all", attention_positions="predicting", **capture)
    return vlm.score(row["image"], row["question"], row["answer"], capture=kept)


@pytest.fixture(scope="module")
def traces(vlm, rows):
    """Of each row, made once: most tests compare with them."""
    return [traced(vlm, row) for row in rows]


def close(found, expected):
    return torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


PLACES = {
    "last_prompt": lambda trace: [trace.prompt_length - 1],
    "prompt": lambda trace: range(trace.prompt_length),
    "text": lambda trace: trace.positions(lp.TEXT),
    "answer": lambda trace: range(trace.prompt_length, len(trace.tokens) - 1),
    "predicting": lambda trace: trace.predicting,
    "image": lambda trace: trace.positions(lp.IMAGE),
    "word": lambda trace: None,
    "word:the": lambda trace: trace.find("the"),
    "3": lambda trace: [3],
    "-2": lambda trace: [trace.prompt_length - 2],
}


@pytest.fixture(scope="module")
def features(vlm, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "features"
    means = ["image_mean", "answer_mean", "image_in_mask", "image_in_mask_mean", "patches", "patches_mean"]
    layers = [*LAYERS, "vision_1", "projector"]
    return lp.extract(
        vlm,
        rows,
        folder,
        layers=layers,
        positions=[*PLACES, *means],
        confidence=True,
        image_attention=True,
        shard_rows=5,
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layer", LAYERS)
def test_features_are_a_traces_hidden_states(rows, traces, features, place, layer):
    for number, (row, trace) in enumerate(zip(rows, traces, strict=True)):
        at = PLACES[place](trace)
        if place == "word":
            at = trace.find(row["word"], role="generated") or trace.find(row["word"])
        found = features[f"layer_{layer}", place][number]
        assert close(found, trace.hidden(layer, list(at)).reshape(found.shape)), row["id"]


def test_a_mean_is_the_mean(rows, features):
    for place in ("image", "answer", "image_in_mask"):
        values = features["layer_6", place]
        expected = torch.stack([values[number].mean(0) for number in range(len(rows))])
        assert close(features["layer_6", f"{place}_mean"], expected)


def test_tokens_in_the_mask_are_those_that_it_covers(rows, traces, features):
    for number, (row, trace) in enumerate(zip(rows, traces, strict=True)):
        shares = trace.layouts[0].to_tokens(row["mask"])
        at = trace.layouts[0].positions[shares >= 0.5]
        at = at if len(at) else [trace.layouts[0].positions[shares.argmax()]]
        assert close(features["layer_2", "image_in_mask"][number], trace.hidden(2, [int(place) for place in at]))


def test_boxes_stand_for_a_mask(vlm, rows, tmp_path):
    x0, y0, x1, y1 = 40, 30, 90, 100
    row = {key: value for key, value in rows[0].items() if key != "mask"} | {"boxes": [[x0, y0, x1, y1]]}
    mask = np.zeros(rows[0]["image"].size[::-1], dtype=bool)
    mask[y0:y1, x0:x1] = True
    both = [row, {**row, "boxes": None, "mask": mask}]
    store = lp.extract(vlm, both, tmp_path / "f", layers=[2], positions="image_in_mask", box_format="xyxy")
    found = store["layer_2", "image_in_mask"]
    assert len(found[0]) > 1
    assert torch.equal(found[0], found[1])


def test_the_projector_is_what_the_language_model_gets(traces, features):
    for number, trace in enumerate(traces):
        assert close(features["projector", "image"][number], trace.projected)


def test_vision_layers_are_the_towers(vlm, rows, features):
    for number, row in enumerate(rows[:4]):
        tower = traced(vlm, row, vision=True).vision_hidden_states[:, 1].flatten(0, 1)
        assert close(features["vision_1", "patches"][number], tower)
        assert close(features["vision_1", "patches_mean"][number], tower.mean(0))


def test_confidence_is_that_of_the_scored_answer(traces, features):
    table = features.table()
    for number, trace in enumerate(traces):
        expected = lp.confidence(trace)
        assert np.allclose(table["token_logprobs"][number].as_py(), expected.logprob, atol=1e-5)
        assert table["answer_logprob"][number].as_py() == pytest.approx(float(expected.logprob.sum()), abs=1e-5)
        assert table["entropy"][number].as_py() == pytest.approx(float(expected.entropy[0]), abs=1e-5)


def test_image_attention_is_the_share_of_each_head(traces, features):
    for number, trace in enumerate(traces):
        share = trace.attention[0][..., trace.positions(lp.IMAGE)].sum(-1)
        assert close(features["image_attention", "last_prompt"][number], share)


def test_rows_keep_the_order_and_the_columns_of_the_source(rows, features):
    assert features.column("id") == [row["id"] for row in rows]
    assert features.column("colour") == [row["colour"] for row in rows]
    assert features.column("row") == list(range(len(rows)))


def test_questions_about_one_picture_share_its_values(rows, traces, features):
    spans = features["layer_2", "image"].spans.tolist()
    pictures = features.column("picture")
    for number in range(1, len(rows)):
        same_shard = features.column("shard")[number] == features.column("shard")[number - 1]
        if pictures[number] == pictures[number - 1] and same_shard:
            assert spans[number] == spans[number - 1]
    assert len(features["layer_2", "image"].values) == len(set(pictures)) * traces[0].layouts[0].positions.size


def test_the_store_is_the_same_however_questions_are_read(vlm, rows, features, tmp_path):
    plain = lp.extract(vlm, rows, tmp_path / "f", layers=[6], positions=["answer", "image"], pack=False, batch_size=1)
    for place in ("answer", "image"):
        for number in range(len(rows)):
            assert close(plain["layer_6", place][number], features["layer_6", place][number])


class Calls:
    """How many sequences modules read."""

    def __init__(self, *modules):
        self.counts = [0] * len(modules)
        self._handles = [
            module.register_forward_hook(lambda _module, _args, output, number=number: self._add(number, output))
            for number, module in enumerate(modules)
        ]

    def _add(self, number, output):
        self.counts[number] += len(output[0] if isinstance(output, tuple) else output)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()


def test_a_pass_ends_at_the_deepest_layer(vlm, rows, tmp_path):
    blocks = vlm.anatomy.decoder.blocks
    with Calls(*blocks, vlm.model.get_output_embeddings()) as calls:
        lp.extract(vlm, rows[:1], tmp_path / "f", layers=[2])
    assert calls.counts == [1, 1] + [0] * (len(blocks) - 1)


def test_the_last_layer_needs_no_vocabulary(vlm, rows, tmp_path):
    with Calls(vlm.model.get_output_embeddings()) as calls:
        lp.extract(vlm, rows[:1], tmp_path / "f", layers=[-1])
    assert calls.counts == [0]


def test_the_tower_alone_runs_no_language_model(vlm, rows, tmp_path):
    with Calls(vlm.anatomy.decoder.blocks[0]) as calls:
        found = lp.extract(vlm, rows[:1], tmp_path / "f", layers=["vision_-1"], positions="patches_mean")
    assert calls.counts == [0]
    assert found.keys() == ((f"vision_{len(vlm.anatomy.vision.blocks)}", "patches_mean"),)


def test_the_tower_runs_once_a_picture(vlm, rows):
    samples = list(read_samples(rows))
    packed, alone = (Extractor(vlm, Recipe((1,), ("last_prompt",), batch_size=size)) for size in (3, 1))
    for extractor, runs in ((packed, len({sample.picture for sample in samples})), (alone, len(rows))):
        list(extractor.shards([(0, samples)]))  # whether they may share a pass is tried here
        with Calls(vlm.anatomy.vision.blocks[0]) as calls:
            list(extractor.shards([(0, samples)]))
        assert calls.counts == [runs]


def test_the_model_answers_where_nobody_did(vlm, rows, tmp_path):
    asked = [{key: row[key] for key in ("image", "question")} for row in rows[:6]]
    found = lp.extract(vlm, asked, tmp_path / "f", layers=[6], positions=["answer", "last_prompt"], max_new_tokens=8)
    for number, row in enumerate(asked):
        trace = vlm.generate(
            row["image"], row["question"], max_new_tokens=8, do_sample=False, capture=lp.Capture(positions="all")
        )
        assert found.column("answer")[number] == trace.answer
        at = range(trace.prompt_length, len(trace.tokens) - 1)
        assert close(found["layer_6", "answer"][number], trace.hidden(6, list(at)))


def test_features_are_stored_as_computed_or_as_asked(rows, tmp_path):
    half = lp.load(dtype="bfloat16")
    kept = lp.extract(half, rows[:2], tmp_path / "f", layers=[2])["layer_2", "last_prompt"]
    trace = half.generate(rows[0]["image"], rows[0]["question"], max_new_tokens=1)
    assert kept.dtype == torch.bfloat16
    assert (kept[0].float() - trace.hidden(2, "last_prompt")[0].float()).norm() < 0.02 * kept[0].float().norm()
    wide = lp.extract(half, rows[:2], tmp_path / "g", layers=[2], store_dtype="float32")["layer_2", "last_prompt"]
    assert torch.equal(wide, kept.float())


def test_a_sample_that_fails_is_a_row_of_errors(vlm, rows, tmp_path):
    broken = [*rows[:2], {"id": "gone", "image": "nowhere.png", "question": "?"}, {**rows[2], "answer": None}, rows[3]]
    found = lp.extract(vlm, broken, tmp_path / "f", layers=[2], positions="answer")
    errors = pq.read_table(tmp_path / "f" / "errors.parquet").to_pylist()
    assert [error["row"] for error in errors] == [2, 3]
    assert "nowhere.png" in errors[0]["reason"]
    assert "it has no answer" in errors[1]["reason"]
    assert found.column("row") == [0, 1, 4]
    with pytest.raises(lp.ProbeError, match=r"nowhere\.png"):
        lp.extract(vlm, broken, tmp_path / "g", layers=[2], strict=True)


def test_a_sample_that_is_too_long_fails_alone(vlm, rows, tmp_path):
    most = vlm.anatomy.decoder.owner.config.max_position_embeddings
    long = {**rows[1], "question": "what " * most}
    found = lp.extract(vlm, [rows[0], long, rows[2]], tmp_path / "f", layers=[2])
    assert found.column("row") == [0, 2]
    assert f"reads {most:,} (max_position_embeddings)" in found.errors()["reason"][0].as_py()


def test_the_manifest_tells_how_the_store_was_made(vlm, features):
    told = features.manifest["settings"]
    assert told["model"]["model"] == "tiny"
    assert told["prompt"] == vlm.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "{question}"}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert told["layers"] == ["vision_1", "projector", "layer_2", "layer_6"]
    assert told["conventions"]["layer_i"].startswith("transformers' hidden_states[i]")


def test_a_picture_that_is_not_there_decides_nothing_about_packing(vlm, rows):
    """What may share a pass is tried with pictures of our own, so it is known where no picture is there at all."""
    gone = [{**row, "image": "nowhere.png"} for row in rows[:2]]
    for some in ([*gone, *rows], gone):
        extractor = Extractor(vlm, Recipe((1,), ("last_prompt",)))
        batches = extractor.batches(list(read_samples(some)))
        assert extractor.sharing == Sharing("", "")
        assert max(len(group) for batch in batches for group in batch) > 1


def test_strict_names_the_sample(vlm, rows, tmp_path):
    with pytest.raises(lp.ProbeError, match=r"sample lost: .*nowhere\.png"):
        lp.extract(vlm, [rows[0], {**rows[1], "id": "lost", "image": "nowhere.png"}], tmp_path / "f", strict=True)


def test_a_column_may_list_the_positions_of_its_row(vlm, rows, tmp_path):
    listed = [[5, 2, -1], [3], [9, 999], "two"]
    asked = [{**row, "at": at} for row, at in zip(rows, listed, strict=False)]
    found = lp.extract(vlm, asked, tmp_path / "f", layers=[2], positions=["at", "at_mean"])
    fed = len(traced(vlm, rows[0]).tokens) - 1
    places = [sorted({2, 5, fed - 1}), [3]]
    for number, places_of_row in enumerate(places):
        states = traced(vlm, rows[number]).hidden(layer=2, at=places_of_row)
        assert close(found["layer_2", "at"][number], states)
        assert found["layer_2", "at"].positions_of(number).tolist() == places_of_row
        assert close(found["layer_2", "at_mean"][number], states.mean(0))
    reasons = " ".join(found.errors()["reason"].to_pylist())
    assert (
        "position 999 of the column at is not in a sequence" in reasons and "lists whole numbers; got 'two'" in reasons
    )


def test_a_run_without_a_single_row_says_so(vlm, rows, tmp_path):
    with pytest.warns(UserWarning, match="every sample failed"):
        lp.extract(vlm, [{**rows[0], "image": "nowhere.png"}], tmp_path / "f", layers=[2])


def test_a_position_that_is_not_there_fails_its_sample_alone(vlm, rows, tmp_path):
    found = lp.extract(vlm, rows, tmp_path / "f", layers=[2], positions="word:ring")
    there = [number for number, row in enumerate(rows) if "ring" in row["question"].split() or "ring" in row["answer"]]
    asked = [
        n for n, row in enumerate(rows) if "ring" in (row["question"] + " " + row["answer"]).replace("?", "").split()
    ]
    assert found.column("row") == asked
    assert set(there) <= set(asked)
    assert found.errors().num_rows == len(rows) - len(asked)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"layers": [99]}, "layer 99 is not there: this model has 0 to 6"),
        ({"layers": ["vision_99"], "positions": "patches"}, "vision_99 is not there"),
        ({"layers": ["head"]}, "'head' is no layer"),
        ({"positions": "somewhere"}, "'somewhere' is no position"),
        ({"layers": ["vision_1"]}, 'kept at positions "patches"'),
        ({"layers": ["projector"]}, 'add a position "image"'),
        ({"positions": "patches"}, "patches belong to the vision tower"),
        ({"store_dtype": "int8"}, "features are float32, bfloat16 or float16"),
        ({"engine": "spark"}, 'there are "local" and "ray"'),
        ({"batch_size": 0}, "takes a whole number from 1 to 1,000,000 or None; got 0"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(vlm, rows, tmp_path, asked, told):
    with pytest.raises(lp.ProbeError, match=told):
        lp.extract(vlm, rows, tmp_path / "f", **asked)


def test_the_command_line_does_the_same(vlm, rows, tmp_path):
    lines = []
    for number, row in enumerate(rows[:3]):
        row["image"].save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "question": row["question"], "colour": row["colour"]}))
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    words = ["extract", str(tmp_path / "questions.jsonl"), "--layers", "2,6", "--positions", "last_prompt,image_mean"]
    ran = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "features")])
    assert ran.exit_code == 0, ran.output
    assert "3 rows of 4 tensors" in ran.output
    found = lp.Features(tmp_path / "features")
    assert found.column("colour") == [row["colour"] for row in rows[:3]]
    trace = vlm.generate(rows[0]["image"], rows[0]["question"], max_new_tokens=1)
    assert close(found["layer_6", "last_prompt"][0], trace.hidden(6, "last_prompt")[0])


def test_random_weights_learnt_nothing(rows, tmp_path):
    one, two, other = (lp.load(random_weights=seed) for seed in (1, 1, 2))
    found = [lp.extract(vlm, rows[:1], tmp_path / str(n), layers=[6]) for n, vlm in enumerate((one, two, other))]
    states = [store["layer_6", "last_prompt"] for store in found]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert "random weights" in found[0].manifest["settings"]["model"]["model"]


def test_a_rows_system_prompt_goes_before_that_of_all(vlm, rows, tmp_path):
    row = {"image": rows[0]["image"], "question": rows[0]["question"]}
    settings = {"layers": [2], "system": "Be brief.", "progress": False}
    own = lp.extract(vlm, [{**row, "system": "Be long."}, row], tmp_path / "own", **settings)
    for place, system in enumerate(("Be long.", "Be brief.")):
        trace = vlm.generate(**row, system=system, max_new_tokens=1, capture=lp.Capture(layers=[2]))
        assert close(own["layer_2", "last_prompt"][place], trace.hidden_states[0, 0])


def test_an_answer_with_the_image_token_fails_alone_and_by_name(vlm, rows, tmp_path):
    given = [{**rows[0], "answer": "a <image>"}, {**rows[1], "answer": "red"}]
    store = lp.extract(vlm, given, tmp_path / "out", layers=[1], progress=False)
    (error,) = store.errors().to_pylist()
    assert len(store) == 1 and "holds the image token" in error["reason"]


def test_a_token_that_the_model_has_no_row_for_is_named(rows, tmp_path):
    vlm = lp.load()
    vlm.processor.tokenizer.add_tokens(["colour"])
    row, *known = [
        {"image": rows[number]["image"], "question": f"What {words} is it?"}
        for number, words in ((0, "colour"), (0, "shape"), (4, "shape"))
    ]
    with pytest.raises(lp.BadInput, match="resize_token_embeddings"):
        vlm.generate(**row)
    with pytest.warns(UserWarning, match="'colour'"):
        store = lp.extract(vlm, [*known, row], tmp_path / "out", layers=[1], pack=False)
    assert "'colour'" in store.errors().to_pylist()[0]["reason"]
