"""Which words name which object: a list of our own for COCO's 80 categories, or somebody's file.

    couch, sofa, settee          # a line an object: its name in the annotations first, then other words for it

Figures in papers rest on the list of the paper that brought CHAIR (Rohrbach et al. 2018), which holds rarer words and
more of them; pass that file to be compared with them. Ours is short on purpose: a word that mostly means something else
in a caption (a bat, a coach, a notebook, a street light) is not on it. A report names the list by its digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_probe.errors import BadInput, shortened
from llava_probe.stored import read_bytes

#: Bytes of a list of words that is read at most.
_LIMIT = 4_000_000

#: COCO's categories by their kind, each with common words for it.
_OWN = """
person, people, man, woman, boy, girl, child, kid, baby, toddler, teenager, adult, guy, lady, gentleman, male, female
person, mother, father, player, rider, driver, surfer, skier, snowboarder, skater, skateboarder, cyclist, biker
person, pedestrian, passenger, worker, officer, policeman, student, chef, waiter, bride, groom, cowboy, doctor
bicycle, bike, tricycle
car, automobile, sedan, taxi, cab, van, minivan, suv, jeep, limousine, hatchback
motorcycle, motorbike, motor bike, motor cycle, scooter, moped
airplane, aeroplane, plane, air plane, aircraft, jet, airliner, jetliner, biplane, seaplane
bus, minibus, trolleybus
train, locomotive, tram, streetcar
truck, lorry, pickup, firetruck
boat, ship, sailboat, motorboat, speedboat, rowboat, canoe, kayak, yacht, ferry, dinghy, tugboat, barge

traffic light, traffic signal, stoplight, stop light
fire hydrant, hydrant
stop sign
parking meter
bench, pew

bird, duck, goose, swan, seagull, gull, pigeon, parrot, owl, eagle, hawk, crow, sparrow, penguin, flamingo, ostrich
bird, pelican, heron, peacock, robin, dove, hummingbird, rooster
cat, kitten, kitty
dog, puppy, pup, doggy, hound, bulldog, terrier, poodle, labrador, retriever, dachshund, beagle, collie, corgi, husky
horse, pony, foal, mare, stallion, colt
sheep, lamb, ewe, ram
cow, cattle, bull, calf, ox, heifer
elephant
bear, panda
zebra
giraffe

backpack, rucksack, knapsack
umbrella, parasol
handbag, hand bag, purse
tie, necktie
suitcase, suit case, luggage

frisbee
skis, ski
snowboard
sports ball, ball
kite
baseball bat
baseball glove, mitt
skateboard, longboard
surfboard, surf board
tennis racket, racket, racquet, tennis racquet

bottle
wine glass, wineglass
cup, mug, teacup
fork
knife
spoon
bowl

banana
apple
sandwich, burger, hamburger, cheeseburger
orange
broccoli
carrot
hot dog, hotdog
pizza
donut, doughnut
cake, cupcake, cheesecake

chair, armchair, stool, seat
couch, sofa, loveseat, settee
potted plant, houseplant, house plant
bed
dining table, table, desk
toilet, urinal

tv, television, monitor, computer monitor
laptop, laptop computer, computer, macbook
mouse, computer mouse
remote, remote control
keyboard, computer keyboard
cell phone, cellphone, phone, mobile phone, smartphone, telephone

microwave
oven, stove, stovetop
toaster
sink, washbasin
refrigerator, fridge, freezer

book
clock
vase
scissors
teddy bear, teddybear, teddy
hair drier, hair dryer, hairdryer
toothbrush
"""


@dataclass(frozen=True)
class Synonyms:
    """Words for objects.

    Attributes:
        object_of: the object by each word for it, its own name among them; one word, or two with a space between.
        name: of the list, for a report.
    """

    object_of: Mapping[str, str] = field(repr=False)
    name: str

    @property
    def objects(self) -> tuple[str, ...]:
        """Every object once."""
        return tuple(dict.fromkeys(self.object_of.values()))

    @property
    def digest(self) -> str:
        """Sha256 in hex, equal for lists that say the same, in whatever order and spacing."""
        told = "\n".join(f"{word}>{self.object_of[word]}" for word in sorted(self.object_of))
        return hashlib.sha256(told.encode()).hexdigest()

    @classmethod
    def own(cls) -> Synonyms:
        """Ours, of COCO's 80 categories."""
        return cls(_words(enumerate(_OWN.splitlines(), start=1), "llava_probe's list"), "llava_probe's list")

    @classmethod
    def read(cls, path: Any) -> Synonyms:
        """A file with a line an object, words parted by commas.

        Raises:
            BadInput: it cannot be read, has no words, or gives one word to two objects.
        """
        data = read_bytes("list of synonyms", path, _LIMIT, BadInput)
        try:
            lines = data.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise BadInput(f"{path} is not UTF-8, so it is no list of synonyms") from None
        found = _words(enumerate(lines, start=1), str(path))
        if not found:
            raise BadInput(f"{path} holds no synonyms; a line is an object, as in 'couch, sofa, settee'")
        return cls(found, str(path))


def _words(lines: Iterable[tuple[int, str]], name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in lines:
        words = [" ".join(word.lower().split()) for word in line.split(",")]
        words = [word for word in words if word]
        for word in words:
            other = found.setdefault(word, words[0])
            if other != words[0]:
                told = f"{shortened(repr(word))} means both {other!r} and {words[0]!r}"
                raise BadInput(f"line {number} of {shortened(name)}: {told}; a word has one object")
    return found
