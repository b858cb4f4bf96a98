"""The objects that a caption names: each rule of CHAIR is a case, written anew."""

import pytest

import llava_probe as lp
from llava_probe.signals.mentions import named, plurals
from llava_probe.signals.synonyms import Synonyms

OWN = Synonyms.own()

RULES = {
    "a category": ("a dog", ["dog"]),
    "each time": ("a dog and a dog", ["dog", "dog"]),
    "another word for it": ("a puppy on a sofa", ["dog", "couch"]),
    "capitals": ("A DOG", ["dog"]),
    "marks": ("(dog), cat.", ["dog", "cat"]),
    "plural": ("dogs", ["dog"]),
    "plural in es": ("buses, couches, sandwiches", ["bus", "couch", "sandwich"]),
    "plural in ies": ("puppies and ferries", ["dog", "boat"]),
    "plural of its own": ("mice, geese, knives, calves, men", ["mouse", "bird", "knife", "cow", "person"]),
    "a plural as a name": ("skis by scissors", ["skis", "scissors"]),
    "possessive": ("the dog's ball", ["dog", "sports ball"]),
    "a part of a word": ("a doghouse, a catalogue", []),
    "hyphens make one word": ("a stop-sign", []),
    "double word": ("a hot dog", ["hot dog"]),
    "double words in the plural": ("traffic lights, wine glasses", ["traffic light", "wine glass"]),
    "a double word beside its part": ("a dog with a hot dog", ["dog", "hot dog"]),
    "not over a mark": ("it is hot, dog", ["dog"]),
    "not over a word": ("teddy the bear", ["teddy bear", "bear"]),
    "sports balls": ("two sports balls", ["sports ball"]),
    "another word of two": ("a tv on a house plant", ["tv", "potted plant"]),
    "a young animal is no person": ("a baby elephant", ["elephant"]),
    "nor a grown one": ("adult giraffes", ["giraffe"]),
    "nor any animal": ("a baby animal, a baby cub", []),
    "a baby by itself is": ("a baby", ["person"]),
    "passenger train": ("passenger trains", ["train"]),
    "passenger jet": ("a passenger jet", ["airplane"]),
    "a passenger in a car": ("a passenger car", ["person", "car"]),
    "bow tie": ("a bow tie", ["tie"]),
    "toilet seat": ("a toilet seat", ["toilet"]),
    "no seat beside a toilet": ("the seat of the toilet", ["toilet"]),
    "nor anywhere in the caption": ("a seat. Far away, a toilet.", ["toilet"]),
    "a chair beside a toilet": ("a chair by the toilet", ["chair", "toilet"]),
    "a seat without one": ("a seat", ["chair"]),
    "a track is no train": ("a train track", []),
    "home plate": ("home plate", []),
    "a computer mouse is one thing": ("a computer mouse", ["mouse"]),
    "nothing": ("", []),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_caption_names_what_the_rules_say(rule):
    caption, objects = RULES[rule]
    assert [mention.object for mention in named(caption, OWN)] == objects


def test_a_mention_knows_its_letters_after_what_was_left_out():
    """Where seats are dropped, places must not be those of other words."""
    caption = "A seat, a toilet and two  baby elephants"
    assert [caption[each.start : each.end] for each in named(caption, OWN)] == ["toilet", "baby elephants"]


def test_our_list_has_cocos_80_categories():
    assert len(OWN.objects) == 80
    assert {"hair drier", "teddy bear", "person", "sports ball", "tv", "toothbrush"} <= set(OWN.objects)
    assert all(named(word, OWN)[0].object == name for word, name in OWN.object_of.items())


def test_plurals_are_regular_or_known():
    assert {"boxes"} <= plurals("box") and {"boys"} == plurals("boy") and "women" in plurals("woman")


def test_a_list_is_read_as_it_lies(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\ufeffcouch,  Sofa, sofa , settee\n\nstar\n", encoding="utf-8")
    words = Synonyms.read(path)
    assert words.object_of == {"couch": "couch", "sofa": "couch", "settee": "couch", "star": "star"}
    assert [each.object for each in named("Stars on settees", words)] == ["star", "couch"]
    (tmp_path / "other.txt").write_text("star\ncouch,settee,sofa")
    assert Synonyms.read(tmp_path / "other.txt").digest == words.digest != OWN.digest


LISTS = {
    "a word twice": ("couch, sofa\nchair, sofa", "line 2 of"),
    "no word": ("\n \n", "holds no synonyms"),
    "no text": (b"\xff\xfe", "is not UTF-8"),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_that_is_none_is_refused(case, tmp_path):
    given, told = LISTS[case]
    path = tmp_path / "words.txt"
    path.write_bytes(given if isinstance(given, bytes) else given.encode())
    with pytest.raises(lp.BadInput) as refused:
        Synonyms.read(path)
    assert told in str(refused.value)
