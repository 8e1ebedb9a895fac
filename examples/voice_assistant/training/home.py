"""A home's state, drawn at random, and the compact text in which the system prompt states it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import names

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WEATHER = ("sunny", "cloudy", "rain", "snow", "fog", "windy", "clear", "storm")
LIGHT, SWITCH, DOOR, COVER = "light", "switch", "door", "cover"
LABELS = {LIGHT: "Lights", SWITCH: "Switches", DOOR: "Doors", COVER: "Covers"}
KINDS = {LIGHT: names.LIGHT_KINDS, SWITCH: names.SWITCH_KINDS, DOOR: names.DOOR_KINDS, COVER: names.COVER_KINDS}
STATES = {LIGHT: ("on", "off"), SWITCH: ("on", "off"), DOOR: ("locked", "unlocked"), COVER: ("open", "closed")}


@dataclass
class Device:
    """One device; `percent` is a light's brightness while it is on at less than full power.

    place: the room in the name, if a user may also say "the light in the kitchen".
    """

    name: str
    group: str
    state: str
    percent: int | None = None
    place: str = ""

    def text(self) -> str:
        return f"{self.name} {self.state}" + (f" {self.percent}%" if self.percent is not None else "")


@dataclass
class Home:
    """The state that questions are answered from; commands change it while a conversation goes on.

    kinds: what devices of each group are called here. An empty clock or weather means that the system prompt does not
    have this line.
    """

    persona: str
    clock: str
    day: str
    outside_c: int
    weather: str
    rooms: dict[str, int]
    devices: list[Device]
    kinds: dict[str, tuple[str, ...]]
    changed: set[str] = field(default_factory=set)

    def group(self, group: str) -> list[Device]:
        return [device for device in self.devices if device.group == group]

    def taken(self) -> set[str]:
        return {device.name for device in self.devices} | set(self.rooms)

    def text(self) -> str:
        """The system prompt."""
        lines = [f"You are {self.persona}, the assistant of this home."]
        if self.clock:
            lines.append(f"Time: {self.clock}, {self.day}")
        if self.weather:
            lines.append(f"Outside: {self.outside_c} C, {self.weather}")
        if self.rooms:
            lines.append("Rooms: " + ", ".join(f"{room} {degrees} C" for room, degrees in self.rooms.items()))
        for group, label in LABELS.items():
            devices = self.group(group)
            if devices:
                lines.append(f"{label}: " + ", ".join(device.text() for device in devices))
        return "\n".join(lines)


def clashes(name: str, taken: set[str]) -> bool:
    """Whether the words of a name include, or are included in, those of a name already taken."""
    words = set(name.split())
    return any(words <= set(other.split()) or set(other.split()) <= words for other in taken)


def fresh_name(rng: random.Random, split: str, kinds: tuple[str, ...], taken: set[str]) -> str:
    while True:
        name = names.device(rng, split, kinds)
        if not clashes(name, taken):
            return name


def fresh_room(rng: random.Random, split: str, taken: set[str]) -> str:
    while True:
        name = names.room(rng, split)
        if name not in taken:
            return name


def draw(rng: random.Random, split: str, small: bool = False) -> Home:
    """A home with up to about ten devices and four rooms; a small one with up to five and two."""
    rooms: dict[str, int] = {}
    for _ in range(rng.choice((1, 1, 2) if small else (1, 2, 2, 3, 3, 4))):
        rooms[fresh_room(rng, split, set(rooms))] = rng.randint(8, 32)
    devices: list[Device] = []
    taken: set[str] = set()
    most = {LIGHT: (1, 2, 3, 3, 4, 5), SWITCH: (0, 1, 1, 2, 3), DOOR: (0, 1, 1, 2), COVER: (0, 0, 1, 1, 2)}
    few = {LIGHT: (1, 1, 2), SWITCH: (0, 0, 1), DOOR: (0, 0, 1), COVER: (0, 0, 1)}
    counts = {group: rng.choice(choices) for group, choices in (few if small else most).items()}
    kinds = {group: names.kinds(rng, split, usual) for group, usual in KINDS.items()}
    for group, count in counts.items():
        lights_on = rng.random()
        for _ in range(count):
            name, place = "", ""
            if not small and rng.random() < 0.15:
                place = rng.choice(list(rooms)) if rng.random() < 0.5 else rng.choice(names.ROOMS.of(split))
                name = f"{place} {rng.choice(kinds[group])}"
            if not name or clashes(name, taken):
                name, place = fresh_name(rng, split, kinds[group], taken), ""
            taken.add(name)
            on, off = STATES[group]
            state = on if rng.random() < lights_on else off
            dimmed = group == LIGHT and state == "on" and rng.random() < 0.25
            devices.append(Device(name, group, state, 5 * rng.randint(1, 19) if dimmed else None, place))
    clock = f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}"
    home = Home(
        names.persona(rng, split),
        clock,
        rng.choice(DAYS),
        rng.randint(0, 35),
        rng.choice(WEATHER),
        rooms,
        devices,
        kinds,
    )
    if not small:
        home.clock = home.clock if rng.random() > 0.07 else ""
        home.weather = home.weather if rng.random() > 0.07 else ""
    return home
