"""Names of rooms, devices and assistants, split so that held-out names never occur in training.

A device name is a modifier and a kind ("desk lamp", "zubrin heater"). Most modifiers seen in training are made up, so
that a model has to copy names from the system prompt instead of remembering them. Made-up words are assigned to a
split by a checksum of their spelling; ordinary words by the two lists below.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

TRAIN, HELD_OUT = "train", "held_out"
SPLITS = (TRAIN, HELD_OUT)


@dataclass(frozen=True)
class Words:
    """A word list with its two disjoint parts."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def of(self, split: str) -> tuple[str, ...]:
        return self.train if split == TRAIN else self.held_out


def _words(train: str, held_out: str) -> Words:
    return Words(tuple(train.split()), tuple(held_out.split()))


ROOMS = Words(
    (
        "kitchen", "bedroom", "bathroom", "hall", "garage", "office", "cellar", "living room", "dining room", "kids room",
        "guest room", "laundry", "playroom", "den", "studio", "terrace", "balcony", "shed", "library", "gym", "entrance",
        "corridor", "music room", "wine cellar", "upper hall", "back room", "small bedroom", "big bathroom",
    ),
    (
        "pantry", "attic", "sauna", "workshop", "nursery", "conservatory", "closet", "sun porch", "basement", "lounge",
        "reading nook", "mud room",
    ),
)  # fmt: skip
MODIFIERS = _words(
    "desk floor ceiling wall bedside table corner mirror shelf porch garden hallway window night reading stairs front back "
    "left right upper lower main side small big red blue green white black old new round tall far north south sofa bed "
    "piano kitchen bedroom bathroom hall garage office living dining guest balcony terrace counter oven sink "
    "toy coat shoe bench oak pine rose tiger star moon river mountain city summer winter papa mama grandma anna tom lisa "
    "velvet copper marble crystal carpet ladder basket button candle pillow blanket drawer barrel bucket hammer pencil paper "
    "picture statue flower tulip daisy lily cactus orchid lemon cherry apple peach berry pepper sugar coffee cocoa honey "
    "butter pebble stone gravel desert canyon valley meadow forest jungle lagoon glacier thunder lightning breeze sunset "
    "horizon planet saturn jupiter galaxy rocket engine bicycle tractor scooter caravan trailer anchor pirate captain knight "
    "castle palace temple tower bridge tunnel market theater museum hospital factory antique modern classic "
    "vintage elegant narrow shallow portable electric magnetic automatic central upstairs downstairs outdoor indoor hobby "
    "reception storage utility dressing changing sewing painting fitness billiard monitor keyboard cinema stereo turntable "
    "incubator generator refrigerator conditioner ventilator dishwasher terrarium stadium podium radiator escalator carrier "
    "chancellor cavalier jeweller amplifier chandler panther beetle rabbit turtle parrot eagle sparrow dolphin lobster",
    "patio driveway vanity cabinet aquarium fireplace staircase yellow purple silver tiny square wooden east "
    "west maple willow falcon dragon comet harbor island autumn uncle oscar bella hugo",
)
LIGHT_KINDS = _words("light lamp spot strip bulb", "sconce lantern chandelier")
SWITCH_KINDS = _words(
    "fan heater radio television boiler oven pump printer speaker charger plug humidifier freezer mixer toaster camera",
    "kettle projector dehumidifier fountain blender",
)
DOOR_KINDS = Words(("door", "gate", "lock"), ("hatch", "safe"))
COVER_KINDS = Words(("blind", "curtain", "window", "shutter", "roof window"), ("awning", "skylight"))
PERSONAS = _words(
    "Ember Robin Alfred Nova Juno Max Ada Felix Ruby Otto Iris Milo Sage Pepper Hazel Jasper Olive Finn Clara Theo",
    "Willow Marvin Stella Hugo Pixel Greta",
)

_ONSETS = (
    "b bl br c ch cl d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sh sk sl sn st t th tr v w y z zw".split()
)
_VOWELS = "a a e e i i o o u u ai ee oo ou".split()
_CODAS = ["", "", "", "", *"b ck d ft g k l ll m mp n n nd ng nk nt p r r rk rm rn s st t th v x z".split()]


def split_of(word: str) -> str:
    """The split a made-up word belongs to: one in eight is held out."""
    return HELD_OUT if zlib.crc32(word.encode()) % 8 == 0 else TRAIN


def _syllables(rng: random.Random) -> str:
    n_syllables = rng.choices((1, 2, 3), (10, 12, 1))[0]
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(n_syllables))


def _followers() -> dict[str, str]:
    """For each two letters, those that come next in the ordinary words of the training split ("$" ends a word)."""
    followers: dict[str, str] = {}
    for word in _TRAINED:
        padded = f"^^{word}$"
        for index in range(len(padded) - 2):
            followers[padded[index : index + 2]] = followers.get(padded[index : index + 2], "") + padded[index + 2]
    return followers


def _like_english(rng: random.Random) -> str:
    """A word in which every three letters in a row are from an ordinary word."""
    word = "^^"
    while not word.endswith("$") and len(word) < 12:
        word += rng.choice(_FOLLOWERS[word[-2:]])
    return word.strip("^$")


def _joined(rng: random.Random) -> str:
    """Parts of two ordinary words of the training split: what they are cut into then stands in any order."""
    one, other = rng.choice(_TRAINED), rng.choice(_TRAINED)
    return one[: rng.randint(2, len(one))] + other[rng.randint(0, max(0, len(other) - 3)) :]


def made_up(rng: random.Random, split: str) -> str:
    """A word that belongs to `split`: of one to three syllables, or like an English one, or any letters.

    In training, a third are joined from parts of ordinary words.
    """
    while True:
        draw = rng.random()
        if split == TRAIN and rng.random() < 0.33:
            word = _joined(rng)
        elif draw < 0.4:
            word = _syllables(rng)
        elif draw < 0.88:
            word = _like_english(rng)
        else:
            word = "".join(rng.choice("aaabcdeeeefghiiijklmnnoopqrrsstttuuvwxyz") for _ in range(rng.randint(3, 8)))
        if len(word) > 2 and split_of(word) == split and word not in _ORDINARY:
            return word


def modifier(rng: random.Random, split: str) -> str:
    return made_up(rng, split) if rng.random() < 0.5 else rng.choice(MODIFIERS.of(split))


def kinds(rng: random.Random, split: str, usual: Words) -> tuple[str, ...]:
    """What a home calls its devices of one group.

    Half of the homes in training have words of their own for it, one or two that several devices share: a held-out kind
    ("chandelier") is such a word, too.
    """
    if split == TRAIN and rng.random() < 0.5:
        return tuple(
            modifier(rng, split) if rng.random() < 0.3 else made_up(rng, split) for _ in range(rng.choice((1, 2)))
        )
    return usual.of(split)


def device(rng: random.Random, split: str, kinds: Sequence[str]) -> str:
    """A device name: modifier and kind, now and then two modifiers or a single made-up word."""
    kind = rng.choice(kinds)
    draw = rng.random()
    if draw < 0.72:
        return f"{modifier(rng, split)} {kind}"
    if draw < 0.84:
        return f"{modifier(rng, split)} {modifier(rng, split)} {kind}"
    if draw < 0.92:
        return kind
    return made_up(rng, split)


def room(rng: random.Random, split: str) -> str:
    draw = rng.random()
    if draw < 0.55:
        return rng.choice(ROOMS.of(split))
    if draw < 0.85:
        return made_up(rng, split)
    return f"{modifier(rng, split)} room"


def persona(rng: random.Random, split: str) -> str:
    return rng.choice(PERSONAS.of(split)) if rng.random() < 0.6 else made_up(rng, split).capitalize()


def _ordinary() -> frozenset[str]:
    entries = (entry.lower() for words in _LISTS for split in SPLITS for entry in words.of(split))
    return frozenset(part for entry in entries for part in entry.split())


_LISTS: Sequence[Words] = (ROOMS, MODIFIERS, LIGHT_KINDS, SWITCH_KINDS, DOOR_KINDS, COVER_KINDS, PERSONAS)
_ORDINARY = _ordinary()
_TRAINED = sorted({part.lower() for words in _LISTS for entry in words.train for part in entry.split()})
_FOLLOWERS = _followers()
