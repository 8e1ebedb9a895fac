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
