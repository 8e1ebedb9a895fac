"""How alike two sentences sound: the distance between their phones.

Phones are those of CMU's pronouncing dictionary. Changing one into a similar one costs half of changing it into any
other, because recognisers mistake those most.
"""

from __future__ import annotations

from collections.abc import Sequence

_ALIKE = tuple(
    frozenset(group.split())
    for group in (
        "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW",
        "P B T D K G",
        "F V TH DH S Z SH ZH HH CH JH",
        "M N NG",
        "L R W Y",
        "ER R",
        "L OW UH AO",
    )
)
_GAP = 0.8


def _cost(one: str, other: str) -> float:
    if one == other:
        return 0.0
    return 0.5 if any(one in group and other in group for group in _ALIKE) else 1.0


def likeness(one: Sequence[str], other: Sequence[str]) -> float:
    """1 for the same phones, about 0 for unrelated ones of the same number."""
    row = [index * _GAP for index in range(len(other) + 1)]
    for i, phone in enumerate(one, 1):
        diagonal, row[0] = row[0], i * _GAP
        for j, candidate in enumerate(other, 1):
            best = min(row[j] + _GAP, row[j - 1] + _GAP, diagonal + _cost(phone, candidate))
            diagonal, row[j] = row[j], best
    return 1 - row[-1] / max(len(one), len(other), 1)
