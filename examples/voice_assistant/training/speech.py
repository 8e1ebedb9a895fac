"""Sentences as a speech recogniser hands them over: lower case, no punctuation, numbers as words, some wrong words."""

from __future__ import annotations

import random
import re

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
_FILLERS = ("uh", "um", "er", "well", "so", "okay", "like")
_HOMOPHONES = {
    "to": ("two", "too"), "for": ("four",), "off": ("of",), "the": ("a", "that", "da"), "it": ("hit",), "is": ("his",),
    "are": ("our",), "in": ("and",), "on": ("own",), "what": ("watt",), "which": ("witch",), "i": ("eye",), "at": ("that",),
    "there": ("their",), "set": ("said",), "turn": ("tern",), "please": ("peas",), "what's": ("watts",), "light": ("lite",),
}  # fmt: skip

_LOOSE = (
    "just really maybe quickly then here there actually we tell if give could get bring let know would like any been still do "
    "have has that this one more first you me my our us it for about some and or but when while once also both all again today "
    "tonight might should must shall will can may think hope guess see look say said ask want wish need try keep make take come "
    "go be is are was were am did does done had got very much many few little bit thing way time day home house how what which "
    "who much so too only even ever never always soon later before after with without from at by of as than up down out over "
    "sure good fine nice great sorry dear buddy friend okay right well please thanks kind quick question current exactly"
).split()


def loosened(sentence: str, rng: random.Random, slots: tuple[str, ...]) -> str:
    """The sentence with one to three words put in anywhere but inside its slots.

    Seen in training only: a model then listens for the words that matter, not for whole patterns.
    """
    for index, slot in enumerate(slots):
        sentence = sentence.replace(slot, f"<{index}>")
    words = sentence.split()
    for _ in range(rng.choice((1, 1, 2, 3))):
        words.insert(rng.randint(0, len(words)), rng.choice(_LOOSE))
    sentence = " ".join(words)
    for index, slot in enumerate(slots):
        sentence = sentence.replace(f"<{index}>", slot)
    return sentence


def spell(number: int) -> str:
    """English words of 0..100."""
    if number < 20:
        return _ONES[number]
    if number == 100:
        return "one hundred"
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f" {_ONES[ones]}" if ones else "")


def written(sentence: str, question: bool, rng: random.Random) -> str:
    """Capital letter and final mark; now and then without the mark, as people type."""
    sentence = re.sub(r"\bi\b", "I", sentence)
    mark = ("?" if question else rng.choice((".", ".", "!", ""))) if rng.random() < 0.85 else ""
    return sentence[:1].upper() + sentence[1:] + mark


def heard(sentence: str, rng: random.Random, protected: frozenset[str], noise: float) -> str:
    """The sentence as a recogniser gives it.

    protected: words (of device names) that stay as they are. noise: chance of an error per word.
    """
    sentence = re.sub(
        r"\d+", lambda match: spell(int(match[0])) if int(match[0]) <= 100 else match[0], sentence.lower()
    )
    sentence = sentence.replace("%", " percent")
    words = re.sub(r"[^\w' ]+", " ", sentence).split()
    result: list[str] = []
    for word in words:
        if word in protected or rng.random() >= noise:
            result.append(word)
            continue
        error = rng.random()
        if error < 0.3:
            result.extend((rng.choice(_FILLERS), word))
        elif error < 0.5 and word in ("the", "a", "please", "me", "my", "you"):
            continue
        elif error < 0.65:
            result.extend((word, word))
        else:
            result.append(rng.choice(_HOMOPHONES[word]) if word in _HOMOPHONES else word)
    return " ".join(result)
