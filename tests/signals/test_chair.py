"""CHAIR from the files that people have, counted by hand, with all that a figure depends on in the report."""

import json
from dataclasses import replace

import numpy as np
import pytest

import llava_probe as lp
from llava_probe.signals.coco import picture_number
from tests.synthetic import synthetic_trace

CATEGORIES = [{"id": 1, "name": "dog"}, {"id": 2, "name": "couch"}, {"id": 3, "name": "stop sign"}]
INSTANCES = {
    "images": [{"id": n, "file_name": f"COCO_val2014_{n:012}.jpg"} for n in (42, 73, 99)],
    "annotations": [
        {"id": 1, "image_id": 42, "category_id": 1, "segmentation": [[0, 1, 2, 3]], "bbox": [0, 0, 1, 1]},
        {"id": 2, "image_id": 42, "category_id": 1},
        {"id": 3, "image_id": 73, "category_id": 2},
    ],
    "categories": CATEGORIES,
}
REFERENCES = {"annotations": [{"image_id": 42, "caption": "A man with his dog."}, {"image_id": 99, "caption": "Cats"}]}
#: Of 42 dog and man are there, of 73 the couch, of 99 a cat.
CAPTIONS = {
    42: "A puppy and another dog by a stop sign",  # dog, dog, made up: stop sign; missed: person
    73: "A cat on a sofa in front of a cat",  # made up: cat twice
    99: "Nothing much",  # missed: cat
}


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "instances_val2014.json").write_text(json.dumps(INSTANCES))
    (tmp_path / "captions_val2014.json").write_text(json.dumps(REFERENCES))
    return tmp_path / "instances_val2014.json", tmp_path / "captions_val2014.json"


def test_measures_equal_a_hand_count(coco):
    found = lp.chair(CAPTIONS, *coco)
    assert float(found.chair_i) == pytest.approx(3 / 6)
    assert float(found.chair_s) == pytest.approx(2 / 3)
    assert float(found.recall) == pytest.approx(2 / 4)
    assert float(found.words) == pytest.approx((9 + 10 + 2) / 3)
    first = found.captions[0]
    assert [each.word for each in first.made_up] == ["stop sign"] and first.missed == {"person"}


def test_without_references_more_is_made_up(coco):
    found = lp.chair({42: "A man with a dog"}, coco[0])
    assert [each.object for each in found.captions[0].made_up] == ["person"]
    assert found.settings["what is there"] == "instances_val2014.json"


FORMS = {
    "JSON": lambda rows: ("c.json", json.dumps(rows)),
    "JSON lines": lambda rows: ("c.jsonl", "\n".join(map(json.dumps, rows))),
    "JSON lines called JSON": lambda rows: ("c.json", "\n".join(map(json.dumps, rows))),
}


@pytest.mark.parametrize("form", FORMS)
def test_captions_are_read_from_the_files_people_have(form, coco, tmp_path):
    rows = [{"image_id": number, "caption": caption} for number, caption in CAPTIONS.items()]
    name, text = FORMS[form](rows)
    (tmp_path / name).write_text(text)
    expected = lp.chair(CAPTIONS, *coco).to_dict()
    assert lp.chair(tmp_path / name, *coco).to_dict() == lp.chair(rows, *coco).to_dict() == expected
    by_file = [{"image": f"COCO_val2014_{row['image_id']:012}.jpg", "text": row["caption"]} for row in rows]
    assert lp.chair(by_file, *coco).to_dict() == lp.chair(CAPTIONS.items(), *coco).to_dict() == expected


def test_pictures_are_known_however_they_are_told():
    told = (42, "42", "000000000042", "COCO_val2014_000000000042.jpg", "val2017/000000000042.jpg")
    assert {picture_number(each, "x") for each in told} == {42}
    assert {picture_number(each, "x") for each in (np.int64(42), "42.0", "val2017/42.jp2")} == {42}


def test_several_files_are_one_data_set(coco, tmp_path):
    other = tmp_path / "instances_train2014.json"
    other.write_text(
        json.dumps({**INSTANCES, "images": [{"id": 7}], "annotations": [{"image_id": 7, "category_id": 2}]})
    )
    found = lp.chair({7: "a couch", 42: "a dog"}, [coco[0], other], [coco[1]])
    assert float(found.chair_i) == 0 and found.settings["what is there"].count(".json") == 3


def test_a_list_of_synonyms_is_taken_and_told(coco, tmp_path):
    (tmp_path / "words.txt").write_text("dog, beast\ncouch\nstop sign\n")
    found = lp.chair({42: "A beast and a puppy"}, *coco, synonyms=tmp_path / "words.txt")
    assert [each.word for each in found.captions[0].mentions] == ["beast"]
    own = lp.chair({42: "A beast and a puppy"}, *coco)
    assert (
        found.settings["synonyms"].startswith("4 words for 3 objects of")
        and "llava_probe's list" in own.settings["synonyms"]
    )
    assert found.settings["synonyms"][-12:] != own.settings["synonyms"][-12:]


# --- the settings that a figure depends on ---


def captioned(answer, generate, cut=False, decoding=None):
    trace = synthetic_trace(answer=[" ST", "OP"] if cut else [" ST", "</s>"])
    request = replace(trace.request, prompt="USER: <image>\nDescribe. ASSISTANT:", generate=generate)
    return replace(trace, answer=answer, request=request, provenance={**trace.provenance, "decoding": decoding or {}})


WAYS = {
    "greedy": ({"max_new_tokens": 2}, {}, "greedy"),
    "greedy whatever the temperature": ({}, {"temperature": 0.6}, "greedy"),
    "beams": ({"num_beams": 5, "length_penalty": 1.2}, {}, "beam search, length_penalty 1.2, num_beams 5"),
    "sampling": ({"do_sample": True, "temperature": 0.2}, {"top_p": 0.9}, "sampling, temperature 0.2, top_p 0.9"),
    "the model's own": ({}, {"do_sample": True}, "sampling"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_report_tells_how_traces_were_made(way, coco):
    generate, decoding, told = WAYS[way]
    settings = lp.chair({42: captioned("A dog.", generate, decoding=decoding)}, *coco).settings
    assert settings["decoding"] == told
    assert settings["prompt"] == "USER: <image>⏎Describe. ASSISTANT:"
    assert settings["max new tokens"] == str(generate.get("max_new_tokens", "the model's own"))


def test_a_report_tells_what_nobody_told(coco):
    settings = lp.chair(CAPTIONS, *coco).settings
    assert settings["prompt"] == settings["max new tokens"] == settings["decoding"] == "not told"
    told = lp.chair(CAPTIONS, *coco, prompt="Describe.", max_new_tokens=64, decoding="greedy").settings
    assert (told["prompt"], told["max new tokens"], told["decoding"]) == ("Describe.", "64", "greedy")


def test_traces_that_were_made_in_several_ways_are_told(coco):
    traces = {n: captioned("A dog.", {"max_new_tokens": n}) for n in (42, 73)}
    assert lp.chair(traces, *coco).settings["max new tokens"] == "several: 42; 73"


def test_what_is_told_is_of_those_captions_that_do_not_tell_it_themselves(coco):
    mixed = {42: captioned("A dog.", {"max_new_tokens": 8}), 73: "A couch."}
    settings = lp.chair(mixed, *coco, prompt="Say what is there.", max_new_tokens=64).settings
    assert settings["prompt"] == "several: USER: <image>⏎Describe. ASSISTANT:; Say what is there."
    assert settings["max new tokens"] == "several: 8; 64"


CUT = "A dog lies there. Beside it a couch and a st"


def test_a_cut_sentence_is_kept_or_dropped_and_that_is_told(coco):
    kept, dropped = (lp.chair({42: CUT, 73: "A couch."}, *coco, drop_cut=drop) for drop in (False, True))
    assert kept.settings["cut last sentence"] == "kept" and float(kept.chair_i) > 0
    assert dropped.settings["cut last sentence"] == "dropped in 1 of 2" and float(dropped.chair_i) == 0
    assert dropped.captions[0].caption == "A dog lies there."


WHOLE = {
    "a full sentence": ("A dog. A cat.", "A dog. A cat."),
    "an end in quotes": ('It says "Stop." And', 'It says "Stop."'),
    "no end at all": ("A dog and a c", "A dog and a c"),
    "a number with a point": ("It is 2.5 m", "It is 2.5 m"),
    "other ends": ("Dogs! What", "Dogs!"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_only_what_does_not_end_is_dropped(case, coco):
    given, kept = WHOLE[case]
    assert lp.chair({42: given}, *coco, drop_cut=True).captions[0].caption == kept


def test_a_trace_that_ended_by_itself_keeps_its_last_words(coco):
    ended, cut = (captioned("A dog. A couch", {"max_new_tokens": 2}, cut=cut) for cut in (False, True))
    assert lp.chair({42: ended}, *coco, drop_cut=True).captions[0].caption == "A dog. A couch"
    assert lp.chair({42: cut}, *coco, drop_cut=True).captions[0].caption == "A dog."


def test_the_digest_of_pictures_is_of_the_set(coco):
    one, same, other = (
        lp.chair(captions, *coco).settings["pictures"]
        for captions in ({42: "x", 73: "y"}, [(73, "z"), (42, "w"), (42, "v")], {42: "x", 99: "y"})
    )
    assert one == same != other and one.startswith("2, sha256 ")


def test_the_report_is_a_table_and_a_file(coco, tmp_path):
    found = lp.chair(CAPTIONS, *coco)
    assert [line.split("  ")[0] for line in found.table().splitlines()][1:5] == list(found.measures)
    assert json.loads(json.dumps(found.to_dict()))["settings"]["cut last sentence"] == "kept"
    assert found.to_csv(tmp_path / "c.csv").read_text().splitlines()[1].startswith("42,A puppy and another dog")
    assert "<table" in found._repr_html_()


FAULTS = {
    "no JSON": ('[{"image_id": 42', "c.json"),
    "a broken line": ('{"image_id": 42, "caption": "x"}\n{"image_id": 73,', "line 2 of c.json cannot be read"),
    "no caption": ('{"image_id": 42, "caption": "x"}\n{"image_id": 73}', "line 2 of c.json has no caption"),
    "no picture": ('{"image_id": 42, "caption": "x"}\n{"caption": "y"}', "line 2 of c.json has no picture"),
    "no number": (
        '{"image_id": "a.jpg", "caption": "x"}\n{"caption": "y"}',
        "line 1 of c.json is of the picture 'a.jpg'",
    ),
    "a picture elsewhere": (
        '{"image_id": 5, "caption": "x"}\n{"image_id": 6, "caption": "y"}',
        "2 of 2 pictures (5, 6)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_one_sentence(fault, coco, tmp_path):
    text, told = FAULTS[fault]
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(lp.BadInput) as refused:
        lp.chair(tmp_path / "c.json", *coco)
    assert told in str(refused.value)


ANNOTATIONS = {
    "no instances": ({"images": []}, "is no file of COCO's instances"),
    "a strange category": ({**INSTANCES, "categories": [{"id": 1, "name": "star"}]}, "has the category 'star'"),
    "a category without a name": ({**INSTANCES, "categories": CATEGORIES[:1]}, "of category 2, which it does not list"),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_bad_annotations_are_one_sentence(case, tmp_path):
    told, sentence = ANNOTATIONS[case]
    (tmp_path / "i.json").write_text(json.dumps(told))
    with pytest.raises(lp.BadInput) as refused:
        lp.chair(CAPTIONS, tmp_path / "i.json")
    assert sentence in str(refused.value)
