"""Whether a tool call is about what was said.

A small model that hears "tell me about coffee" may switch the coffee machine on. A call is carried out only if the
words that were heard name its device, say what to do with it, and hold its number.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from voice_assistant.home import ALL_LIGHTS, ToolCall
from voice_assistant.spelling import read_number

_EVIDENCE: dict[str, frozenset[str]] = {
    "turn_on": frozenset("on start activate enable run".split()),
    "turn_off": frozenset("off stop deactivate disable kill shut dark".split()),
    "lock": frozenset("lock locked".split()),
    "unlock": frozenset("unlock unlocked release".split()),
    "open": frozenset("open opened raise up".split()),
    "close": frozenset("close closed shut lower down".split()),
    "set_brightness": frozenset("percent".split()),
    "set_temperature": frozenset("degrees set heat cool warm temperature".split()),
    "set_timer": frozenset("timer minute minutes remind wake".split()),
}
_PRONOUNS = frozenset("it that them this".split())
_NUMBERS = {"set_brightness": "percent", "set_temperature": "degrees", "set_timer": "minutes"}


def grounded(call: ToolCall, heard: str, before: Collection[str] = ()) -> bool:
    """heard: what the user said. before: targets of the turn before, which "it" may mean."""
    words = heard.lower().split()
    if not _EVIDENCE.get(call.name, frozenset()).intersection(words):
        return False
    if key := _NUMBERS.get(call.name):
        number = call.arguments.get(key)
        if number not in _numbers(words):
            return False
    target = call.arguments.get("device", call.arguments.get("room"))
    if target is None:
        return call.name == "set_timer"
    if not isinstance(target, str):
        return False
    if target == ALL_LIGHTS:
        return bool({"lights", "light", "everything"}.intersection(words))
    return set(target.split()) <= set(words) or (target in before and bool(_PRONOUNS.intersection(words)))


def _numbers(words: Sequence[str]) -> set[int]:
    """Every number that some words in a row spell."""
    found = set()
    for start in range(len(words)):
        for end in range(start + 1, min(start + 5, len(words)) + 1):
            number = read_number(words[start:end])
            if number is not None:
                found.add(number)
    return found
