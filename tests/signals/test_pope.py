"""POPE's files read, each rule of its own evaluator a case, and a model asked."""

import json

import numpy as np
import pytest

import llava_probe as lp
from llava_probe import tiny
from llava_probe.signals.yes_no import says_neither, says_yes

RULES = {
    "no alone": ("No", False),
    "in small letters": ("no", False),
    "not": ("There is not a dog", False),
    "without its comma": ("No, there is none", False),
    "a comma inside": ("Sorry, no, nothing", False),
    "up to the first full stop": ("There is a dog. No cat", True),
    "in the first sentence": ("There is no dog. Yes", False),
    "a stop at once": (".no", True),
    "capitals are no no": ("NO", True),
    "Not at the start": ("Not that I see", True),
    "with another mark": ("no!", True),
    "before a line end": ("no\nbecause", True),
    "a part of a word": ("none, nothing, another", True),
    "n't": ("There isn't a dog", True),
    "yes": ("Yes", True),
    "neither": ("A kitchen", True),
    "nothing": ("", True),
}


@pytest.mark.parametrize("rule", RULES)
def test_an_answer_is_read_by_the_official_rules(rule):
    answer, yes = RULES[rule]
    assert says_yes(answer) is yes


def test_an_answer_that_says_neither_is_known():
    assert [text for text, _ in RULES.values() if says_neither(text)] == [
        "none, nothing, another", "There isn't a dog", "A kitchen", "",
    ]  # fmt: skip


LABELS = ["yes", "yes", "yes", "no", "no", "no"]
SAID = ["Yes.", "Yes, there is", "No", "no", "No.", "A dog"]


def rows(labels=LABELS):
    return [
        {"question_id": n + 1, "image": f"{n // 2}.jpg", "text": f"Is there a thing {n} in the image?", "label": label}
        for n, label in enumerate(labels)
    ]


def lines(path, told):
    path.write_text("".join(json.dumps(row) + "\n" for row in told))
    return path


@pytest.fixture
def questions(tmp_path):
    return lines(tmp_path / "coco_pope_random.json", rows())


def test_measures_equal_a_hand_count(questions):
    found = lp.pope(questions, SAID).splits["random"].text
    assert (found.true_yes, found.false_yes, found.true_no, found.false_no) == (2, 1, 2, 1)
    values = [float(measure) for measure in found.measures.values()]
    assert values == pytest.approx([4 / 6, 2 / 3, 2 / 3, 2 / 3, 3 / 6])


FORMS = {
    "official": lambda: [{"question": row["text"], "answer": said} for row, said in zip(rows(), SAID, strict=True)],
    "LLaVA's": lambda: [
        {"question_id": row["question_id"], "prompt": row["text"] + "\nOne word.", "text": said}
        for row, said in list(zip(rows(), SAID, strict=True))[::-1]
    ],
    "answers alone": lambda: [{"answer": said} for said in SAID],
}


@pytest.mark.parametrize("form", FORMS)
def test_answers_are_read_from_the_files_people_have(form, questions, tmp_path):
    told = FORMS[form]()
    path = lines(tmp_path / "answers.jsonl", told)
    expected = lp.pope(questions, SAID).to_dict()
    assert lp.pope(questions, path).to_dict() == lp.pope(questions, told).to_dict() == expected
    assert expected["random"]["hedged"] == 1


def test_splits_come_by_name_or_by_category(questions, tmp_path):
    popular = lines(tmp_path / "coco_pope_popular.jsonl", rows(["no"] * 6))
    both = lp.pope({"random": questions, "popular": popular}, {"random": SAID, "popular": ["no"] * 6})
    assert list(both.splits) == ["random", "popular"] and float(both.splits["popular"].text.accuracy) == 1
    assert np.isnan(float(both.splits["popular"].text.precision)), "nobody said yes"
    whole = [{**row, "category": name} for name in ("random", "popular") for row in rows()]
    by_category = lp.pope(whole, SAID * 2)
    assert by_category.to_dict()["popular"] == by_category.to_dict()["random"] == both.to_dict()["random"]


def test_an_interval_draws_pictures():
    """Answers of a picture are alike, so that what looks like 60 answers is 10."""
    labels = ["yes"] * 60
    asked = [{**row, "image": f"{n // 6}.jpg"} for n, row in enumerate(rows(labels))]
    said = [answer for n in range(10) for answer in ["yes" if n % 2 else "no"] * 6]
    together = lp.pope(asked, said).splits["list"].text.accuracy
    alone = lp.pope([{**row, "image": f"{n}.jpg"} for n, row in enumerate(asked)], said).splits["list"].text.accuracy
    assert float(together) == float(alone) == 0.5
    assert together.high - together.low > 1.8 * (alone.high - alone.low), "the square root of 6 is 2.4"


FAULTS = {
    "no JSON": ('{"question_id": 1,', SAID, "line 2 of q.json"),
    "a label that is neither": ('{"text": "T", "label": "No", "image": "a"}', SAID, "line 2 of q.json is 'No'"),
    "no label": ('{"text": "T", "image": "a"}', SAID, "line 2 of q.json has no label"),
    "too few answers": ("", SAID[:5], "5 answers to the 6 questions"),
    "another question": (
        "",
        [{"answer": "no", "question": "Is there a cow?"}] * 6,
        "answer 0 answers 'Is there a cow?'",
    ),
    "an answer twice": ("", [{"answer": "no", "question_id": 1}] * 6, "answer 1 answers question_id 1 again"),
    "an id too few": ("", [{"answer": "no", "question_id": n} for n in range(6)], "no answer has the question_id 6"),
    "no answer": ("", [{"said": "no"}] * 6, "answer 0 has no answer"),
    "no text": ("", [3] * 6, "answer 0 is a int"),
    "a label that is a list": (
        '{"text": "T", "label": ["yes", "no"], "image": "a"}',
        SAID,
        "line 2 of q.json is ['yes",
    ),
    "ids that stand twice, in another order": (
        '{"question_id": 6, "text": "T", "label": "yes", "image": "a"}',
        [{"answer": "no", "question_id": n} for n in (6, 6, 5, 4, 3, 2, 1)],
        "answer 0 answers question_id 6, where line 1 of q.json is 1",
    ),
    "an answer without an id, the others in another order": (
        "",
        [{"answer": "no", "question_id": n} for n in (6, 5, 4)] + [{"answer": "no"}] * 3,
        "answer 0 answers question_id 6, where line 1 of q.json is 1",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_one_sentence_with_its_line(fault, tmp_path):
    extra, answers, told = FAULTS[fault]
    first, *others = map(json.dumps, rows())
    (tmp_path / "q.json").write_text("\n".join([first, *([extra] if extra else []), *others]))
    with pytest.raises(lp.BadInput) as refused:
        lp.pope(tmp_path / "q.json", answers)
    assert told in str(refused.value)


def test_splits_need_answers_by_the_same_names(questions):
    with pytest.raises(lp.BadInput, match="must be by the same"):
        lp.pope({"random": questions}, {"popular": SAID})
    with pytest.raises(lp.BadInput, match="got none"):
        lp.pope({}, {})


# --- a model ---


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Three scenes, each asked for a thing that is there and for one that is not."""
    folder, told = tmp_path_factory.mktemp("pope"), []
    for seed in (3, 5, 8):
        scene = tiny.scene(seed)
        scene.image.save(folder / f"{seed}.png")
        for question in [each for each in scene.questions if each.answer in ("yes", "no")][:2]:
            told.append({"image": f"{seed}.png", "text": question.question, "label": question.answer})
    return lines(folder / "tiny_pope_random.json", told)


def test_a_model_is_asked_and_both_readings_told(tiny_vlm, scenes):
    found = lp.pope(scenes, tiny_vlm, batch_size=4, progress=False)
    (split,) = found.splits.values()
    asked = [json.loads(line) for line in scenes.read_text().splitlines()]
    traces = [tiny_vlm.generate(scenes.parent / row["image"], row["text"]) for row in asked]
    assert list(split.answers) == [trace.answer for trace in traces]
    weighed = [lp.confidence(trace).choices(["yes", "no"]) for trace in traces]
    assert split.yes == pytest.approx([each.normalised[0] for each in weighed], abs=1e-5)
    assert split.off_choice == pytest.approx([1 - sum(each.probability) for each in weighed], abs=1e-5)
    right = [(each.best == "yes") == label for each, label in zip(weighed, split.labels, strict=True)]
    assert float(split.weighed.accuracy) == pytest.approx(np.mean(right))
    told = str(found)
    assert "probability" in told and "neither yes nor no (at most" in told and "readings agree on" in told
    again = lp.pope(scenes, iter(traces)).splits["random"]
    assert again.answers == split.answers and again.yes == pytest.approx(split.yes, abs=1e-5)
    assert found.binding.prompt[-1] != "" and len(found.binding.prompt) == 2


def test_a_picture_that_is_not_there_is_told_with_its_line(tiny_vlm, tmp_path):
    with pytest.raises(lp.BadInput, match=r"line 1 of q.jsonl cannot be asked: .*gone\.png"):
        lp.pope(lines(tmp_path / "q.jsonl", [{"image": "gone.png", "text": "Is there?", "label": "no"}]), tiny_vlm)


def test_probabilities_may_be_whole_numbers_and_a_little_off(questions):
    told = [{"answer": said, "yes": 0.75, "no": 0.25} for said in SAID]
    told[0] |= {"yes": 1, "no": 0}
    told[1] |= {"yes": 1.00001, "no": -1e-6}
    found = lp.pope(questions, told).splits["random"]
    assert found.yes == pytest.approx([1, 1, 0.75, 0.75, 0.75, 0.75], abs=1e-12)
    assert lp.pope(questions, [{"answer": said, "yes": 0.7} for said in SAID]).splits["random"].yes is None
    told[2] |= {"yes": 40, "no": 60}
    with pytest.raises(lp.BadInput, match="answer 2 gives yes the probability 40; it is a number from 0 to 1"):
        lp.pope(questions, told)


def test_a_model_that_draws_by_its_own_config_is_asked_greedily(tiny_vlm, scenes):
    plain = lp.pope(scenes, tiny_vlm, progress=False)
    drawing = lp.load()
    drawing.model.generation_config.update(do_sample=True, temperature=50.0, num_beams=1)
    assert lp.pope(scenes, drawing, progress=False).to_dict() == plain.to_dict()


def test_a_table_and_a_file_hold_every_split(questions, tmp_path):
    found = lp.pope(questions, SAID)
    assert found.table().splitlines()[1].startswith("random  text")
    assert "1 of 6 say neither yes nor no" in str(found)
    assert (
        found.to_csv(tmp_path / "p.csv").read_text().splitlines()[0].startswith("split,reading,questions,accuracy,acc")
    )
    assert "<table" in found._repr_html_()
