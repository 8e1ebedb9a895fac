"""The home: its devices and rooms, the text that tells the model about them, and what tool calls do to them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from voice_assistant.config import STATES, HomeTable
from voice_assistant.errors import DeviceError

LABELS = {"light": "Lights", "switch": "Switches", "door": "Doors", "cover": "Covers"}
VERBS: dict[str, tuple[tuple[str, ...], str]] = {
    "turn_on": (("light", "switch"), "on"),
    "turn_off": (("light", "switch"), "off"),
    "lock": (("door",), "locked"),
    "unlock": (("door",), "unlocked"),
    "open": (("cover",), "open"),
    "close": (("cover",), "closed"),
}
"""The tools that switch: which kinds of devices each is for, and their state afterwards."""
ALL_LIGHTS = "all lights"


@dataclass(frozen=True)
class Device:
    """percent: brightness of a light that is on at less than full power."""

    name: str
    kind: str
    state: str
    percent: int | None = None

    def text(self) -> str:
        return f"{self.name} {self.state}" + (f" {self.percent}%" if self.percent is not None else "")


@dataclass(frozen=True)
class Action:
    """What is to be done to one device or room: `state`, `percent` or `degrees` is what it shall be."""

    target: str
    state: str = ""
    percent: int | None = None
    degrees: int | None = None


class Backend(Protocol):
    """Whatever really switches."""

    def apply(self, action: Action) -> None:
        """Raises DeviceError if it was not done."""


class Simulated:
    """Devices that exist in this program only; what was done is kept, for whoever looks."""

    def __init__(self) -> None:
        self.done: list[Action] = []

    def apply(self, action: Action) -> None:
        self.done.append(action)


@dataclass(frozen=True)
class ToolCall:
    """What the model wants done."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Home:
    """The state that is told to the model. Safe to use from several threads."""

    def __init__(self, table: HomeTable, backend: Backend) -> None:
        self._table, self._backend = table, backend
        self._lock = threading.Lock()
        self._devices = {
            one.name: Device(one.name, one.kind, one.state or STATES[one.kind][1]) for one in table.devices
        }
        self._rooms = {one.name: one.degrees for one in table.rooms}

    @property
    def devices(self) -> Sequence[Device]:
        with self._lock:
            return list(self._devices.values())

    @property
    def rooms(self) -> Mapping[str, int]:
        with self._lock:
            return dict(self._rooms)

    def prompt(self, persona: str, now: datetime) -> str:
        """The system prompt, in the form that the demo model was trained with."""
        lines = [f"You are {persona}, the assistant of this home.", f"Time: {now.hour}:{now:%M, %A}"]
        if self._table.weather:
            lines.append(f"Outside: {self._table.outside_c} C, {self._table.weather}")
        with self._lock:
            if self._rooms:
                lines.append("Rooms: " + ", ".join(f"{name} {degrees} C" for name, degrees in self._rooms.items()))
            for kind, label in LABELS.items():
                texts = [device.text() for device in self._devices.values() if device.kind == kind]
                if texts:
                    lines.append(f"{label}: {', '.join(texts)}")
        return "\n".join(lines)

    def call(self, call: ToolCall) -> str | None:
        """Does what a tool call says; None if it was done, else why not, as the model is told.

        The model's words are untrusted: names, kinds and numbers are checked, and one wrong argument does nothing.
        """
        try:
            actions = self._actions(call)
        except ValueError as error:
            return str(error)
        for action in actions:
            try:
                self._backend.apply(action)
            except DeviceError:
                return "no answer"
            self._remember(action)
        return None

    def _actions(self, call: ToolCall) -> list[Action]:
        arguments = call.arguments
        if call.name in VERBS:
            kinds, state = VERBS[call.name]
            name = arguments.get("device")
            if name == ALL_LIGHTS and "light" in kinds:
                return [Action(one.name, state) for one in self.devices if one.kind == "light"]
            return [Action(self._device(name, kinds).name, state)]
        if call.name == "set_brightness":
            device = self._device(arguments.get("device"), ("light",))
            return [Action(device.name, "on", percent=_whole(arguments, "percent", 0, 100))]
        if call.name == "set_temperature":
            room = arguments.get("room")
            if not isinstance(room, str) or room not in self.rooms:
                raise ValueError("no such room")
            return [Action(room, degrees=_whole(arguments, "degrees", 5, 35))]
        raise ValueError("no such tool")

    def _device(self, name: object, kinds: Sequence[str]) -> Device:
        with self._lock:
            device = self._devices.get(name) if isinstance(name, str) else None
        if device is None:
            raise ValueError("no such device")
        if device.kind not in kinds:
            raise ValueError(f"a {device.kind} cannot do that")
        return device

    def _remember(self, action: Action) -> None:
        with self._lock:
            if action.degrees is not None:
                self._rooms[action.target] = action.degrees
            else:
                was = self._devices[action.target]
                self._devices[action.target] = replace(was, state=action.state, percent=action.percent)


def _whole(arguments: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = arguments.get(key)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} must be a whole number from {least} to {most}")
    return value
