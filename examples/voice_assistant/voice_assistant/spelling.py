"""Whole numbers as words and back: recognisers write "twenty five"."""

from __future__ import annotations

from collections.abc import Sequence

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def spell(number: int) -> str:
    """English words of 0 to 100."""
    if number < 20:
        return ONES[number]
    if number == 100:
        return "one hundred"
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f" {ONES[ones]}" if ones else "")


def read_number(words: Sequence[str]) -> int | None:
    """The number that all of `words` spell, digits too; None if they do not spell one of 0 to 999."""
    if len(words) == 1 and words[0].isdecimal() and words[0].isascii() and len(words[0]) < 4:
        return int(words[0])
    if "hundred" in words:
        index = words.index("hundred")
        head = ["one"] if list(words[:index]) in ([], ["a"]) else words[:index]
        tail = [word for word in words[index + 1 :] if word != "and"]
        high, low = read_number(head), read_number(tail) if tail else 0
        return None if high is None or low is None or not 0 < high < 10 or low > 99 else 100 * high + low
    if len(words) == 1:
        for names, factor in ((ONES, 1), (TENS, 10)):
            if words[0] in names and words[0] != "_":
                return names.index(words[0]) * factor
        return 1 if words[0] in ("a", "an") else None
    if len(words) == 2 and words[0] in TENS[2:] and words[1] in ONES[1:10]:
        return TENS.index(words[0]) * 10 + ONES.index(words[1])
    return None
