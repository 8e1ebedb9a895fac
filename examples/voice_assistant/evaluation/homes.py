"""Two homes and what is said in them: one that the assistant was tuned with, one that it was not."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from voice_assistant.config import DeviceTable, HomeTable, RoomTable
from voice_assistant.home import VERBS, Action
from voice_assistant.spelling import spell

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import patterns  # type: ignore[import-not-found]

UNSEEN = HomeTable(
    weather="cloudy",
    outside_c=12,
    devices=(
        DeviceTable(name="garden lamp", kind="light"),
        DeviceTable(name="hall light", kind="light", state="on"),
        DeviceTable(name="table lamp", kind="light"),
        DeviceTable(name="heater", kind="switch"),
        DeviceTable(name="television", kind="switch", state="on"),
        DeviceTable(name="water pump", kind="switch"),
        DeviceTable(name="cellar door", kind="door", state="locked"),
        DeviceTable(name="back gate", kind="door"),
        DeviceTable(name="office blind", kind="cover"),
        DeviceTable(name="bathroom window", kind="cover", state="open"),
    ),
    rooms=(RoomTable(name="office", degrees=19), RoomTable(name="bathroom", degrees=23)),
)
"""None of these devices was there when the grammar's thresholds were chosen."""


@dataclass(frozen=True)
class Trial:
    """What is said, and everything that is to be done because of it."""

    text: str
    expected: tuple[Action, ...]


_STATES = {
    "turn_on": "on",
    "turn_off": "off",
    "lock": "locked",
    "unlock": "unlocked",
    "open": "open",
    "close": "closed",
}
_KINDS = {"light": ("turn_on", "turn_off"), "switch": ("turn_on", "turn_off"), "door": ("lock", "unlock"),
          "cover": ("open", "close")}  # fmt: skip
_USUAL = {
    "turn_on": ("turn on the {d}", "switch the {d} on", "please turn the {d} on"),
    "turn_off": ("turn off the {d}", "switch the {d} off", "turn the {d} off please"),
    "lock": ("lock the {d}", "please lock the {d}"),
    "unlock": ("unlock the {d}", "please unlock the {d}"),
    "open": ("open the {d}", "could you open the {d}"),
    "close": ("close the {d}", "shut the {d}"),
}


def usual(home: HomeTable, seed: int) -> Iterator[Trial]:
    """Commands as most people say them: every device both ways, lights dimmed, rooms heated."""
    rng = random.Random(seed)
    for device in home.devices:
        for verb in _KINDS[device.kind]:
            text = rng.choice(_USUAL[verb]).format(d=device.name)
            yield Trial(text, (Action(device.name, VERBS[verb][1]),))
        if device.kind == "light":
            percent = 5 * rng.randint(2, 20)
            text = f"set the {device.name} to {spell(percent)} percent"
            yield Trial(text, (Action(device.name, "on", percent=percent),))
    for room in home.rooms:
        degrees = rng.randint(15, 26)
        yield Trial(f"set the {room.name} to {spell(degrees)} degrees", (Action(room.name, degrees=degrees),))


def unusual(home: HomeTable, seed: int) -> Iterator[Trial]:
    """Commands in words that neither the grammar nor the model's training has: patterns held out of it."""
    rng = random.Random(seed)
    for device in home.devices:
        for verb in _KINDS[device.kind]:
            pattern = rng.choice(patterns.COMMANDS[verb].held_out)
            yield Trial(pattern.format(d=device.name), (Action(device.name, VERBS[verb][1]),))


def unrelated(seed: int, count: int) -> Iterator[Trial]:
    """Questions and requests that have nothing to do with a home, held out of the model's training: nothing is done."""
    rng = random.Random(seed)
    every = [*patterns.UNKNOWN.held_out, *patterns.CANNOT.held_out]
    rng.shuffle(every)
    for pattern in every[:count]:
        yield Trial(pattern.format(x=rng.choice(patterns.TOPICS.held_out)), ())
