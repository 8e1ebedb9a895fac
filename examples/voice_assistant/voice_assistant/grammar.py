"""What is usually said in this home, as a grammar in JSGF: commands, questions about devices, timers, the time.

A recogniser that knows only these sentences hears them far better than one that knows all English; it also hears them
in whatever else is said, so that its words count only where the free recogniser heard much the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from voice_assistant.home import Device
from voice_assistant.spelling import ONES, TENS


def words_of(devices: Sequence[Device], rooms: Sequence[str]) -> set[str]:
    """The words of all names, which the recogniser's dictionary must have."""
    return {word for name in (*(device.name for device in devices), *rooms) for word in name.split()}


def home_grammar(devices: Sequence[Device], rooms: Sequence[str]) -> str:
    """The grammar of a home, as JSGF's text."""
    by_kind = {kind: [one.name for one in devices if one.kind == kind] for kind in ("light", "switch", "door", "cover")}
    powered = by_kind["light"] + by_kind["switch"]
    sentences: list[str] = []
    rules = [f"<small> = {' | '.join(ONES[1:])};", f"<tens> = {' | '.join(TENS[2:])};",
             f"<digit> = {' | '.join(ONES[1:10])};",
             "<number> = <small> | <tens> | <tens> <digit> | one hundred;"]  # fmt: skip

    def rule(name: str, names: Sequence[str], *patterns: str) -> None:
        if names:
            rules.append(f"<{name}> = {' | '.join(names)};")
            sentences.extend(patterns)

    rule(
        "powered", powered,
        "(turn | switch | put) (on | off) [the] <powered>", "(turn | switch | put) [the] <powered> (on | off)",
        "(turn | switch) (on | off) [the] <powered> and [the] <powered>",
        "(turn | switch) [the] <powered> and [the] <powered> (on | off)",
        "is [the] <powered> (on | off)", "[the] <powered> (on | off)",
    )  # fmt: skip
    rule(
        "light", by_kind["light"],
        "(set | dim | turn) [the] <light> [up | down] to <number> percent",
        "(turn | switch) (on | off) all [the] lights", "(turn | switch) all [the] lights (on | off)",
        "(which | what) lights are (on | off)", "are all [the] lights (on | off)",
    )  # fmt: skip
    rule(
        "door", by_kind["door"],
        "(lock | unlock) [the] <door>", "is [the] <door> (locked | unlocked)",
        "(which | what) doors are (locked | unlocked)",
    )  # fmt: skip
    rule(
        "cover", by_kind["cover"],
        "(open | close | shut) [the] <cover>", "is [the] <cover> (open | closed)",
        "(which | what) covers are (open | closed)",
    )  # fmt: skip
    rule(
        "room", rooms,
        "(set | heat) [the] <room> to <number> degrees", "set the temperature in the <room> to <number> degrees",
        "how (warm | cold) is (it in the <room> | the <room>)", "what is the temperature in the <room>",
    )  # fmt: skip
    sentences += [
        "(set | start) a timer for <number> (minute | minutes | second | seconds)",
        "(set | start) a <number> (minute | second) timer",
        "(cancel | stop) (the | my) timer", "how (much time | long) is left [on the timer]",
        "how long does the timer have",
        "what time is it", "what is the time", "what day is it", "what is the weather [like]",
        "how (warm | cold) is it outside", "what is the temperature outside",
        "stop", "cancel", "never mind", "thank you", "who are you", "what can you do",
    ]  # fmt: skip
    opening = "[please | could you | can you | now]"
    rules.append(f"public <sentence> = {opening} ( {' | '.join(sentences)} ) [please | now];")
    return "#JSGF V1.0;\ngrammar home;\n" + "\n".join(rules) + "\n"
