"""Conversations with a home assistant: system prompt, user turns, tool calls, tool results and answers.

    python conversations.py --split held_out --count 100 --exchanges 1 --seed 11 > conversations_heldout.jsonl

Every assistant message carries what it is judged by; see `Check`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import home as homes
import names
import patterns
import speech
from home import COVER, DOOR, LABELS, LIGHT, SWITCH, Device, Home

sys.path.append(str(Path(__file__).resolve().parents[1]))
from voice_assistant.tools import TOOLS  # the assistant's, which the model is for

Message = dict[str, Any]

REFUSE_ACTION = "Sorry, I can't do that. I can only control this home."
REFUSE_QUESTION = "Sorry, I don't know that. I only know about this home."
ALL_LIGHTS = "all lights"
COMMANDS_OF = {
    LIGHT: ("turn_on", "turn_off"),
    SWITCH: ("turn_on", "turn_off"),
    DOOR: ("lock", "unlock"),
    COVER: ("open", "close"),
}
STATE_AFTER = {
    "turn_on": "on",
    "turn_off": "off",
    "lock": "locked",
    "unlock": "unlocked",
    "open": "open",
    "close": "closed",
}
OPPOSITE = {
    "turn_on": "turn_off",
    "turn_off": "turn_on",
    "lock": "unlock",
    "unlock": "lock",
    "open": "close",
    "close": "open",
}


@dataclass(frozen=True)
class Check:
    """How an assistant message is judged: tool calls must be equal, an answer must hold all of `all`, none of `none`.

    any: if not empty, the answer must be one of these.
    """

    category: str
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    all: tuple[str, ...] = ()
    none: tuple[str, ...] = ()
    any: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """messages: the chat; checks: one per assistant message, by its index; tools: whether the template gets TOOLS."""

    messages: list[Message]
    checks: dict[int, Check]
    tools: bool


def call_message(calls: list[tuple[str, dict[str, Any]]]) -> Message:
    functions = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "content": "", "tool_calls": functions}


class Writer:
    """Writes one conversation; all randomness comes from `rng`."""

    def __init__(self, rng: random.Random, split: str, small: bool = False) -> None:
        self.rng, self.split = rng, split
        self.home: Home = homes.draw(rng, split, small)
        self.spoken = rng.random() < 0.6
        self.messages: list[Message] = [{"role": "system", "content": self.home.text()}]
        self.checks: dict[int, Check] = {}
        self.last: tuple[Device, str] | None = None

    # Sentences

    def called(self, device: Device) -> str:
        """What the user says for a device."""
        if device.place and self.rng.random() < 0.3:
            return f"{device.name.removeprefix(device.place).strip()} in the {device.place}"
        return device.name

    def pick(self, words: names.Words) -> str:
        return self.rng.choice(words.of(self.split))

    def user(self, sentence: str, question: bool, *slots: str) -> None:
        """Adds the user's message; `slots` are the names in it, which a recogniser's noise leaves alone."""
        if self.split == names.TRAIN and self.rng.random() < 0.3:
            sentence = speech.loosened(sentence, self.rng, slots)
        if self.spoken:
            protected = frozenset(word for slot in slots for word in slot.lower().split())
            text = speech.heard(sentence, self.rng, protected, noise=self.rng.choice((0.0, 0.0, 0.05, 0.1)))
        else:
            text = speech.written(sentence, question, self.rng)
        self.messages.append({"role": "user", "content": text})

    def command(self, sentence: str, *slots: str) -> None:
        draw = self.rng.random()
        if draw < 0.25:
            sentence = f"{self.pick(patterns.OPENERS)} {sentence}"
        elif draw < 0.4:
            sentence = f"{sentence} {self.pick(patterns.CLOSERS)}"
        self.user(sentence, False, *slots)

    def question(self, sentence: str, *slots: str) -> None:
        if self.rng.random() < 0.15:
            sentence = f"{self.pick(patterns.ASIDES)} {sentence}"
        self.user(sentence, True, *slots)

    def answer(self, text: str, check: Check) -> None:
        self.checks[len(self.messages)] = check
        self.messages.append({"role": "assistant", "content": text})

    def calls(self, calls: list[tuple[str, dict[str, Any]]], category: str) -> None:
        self.checks[len(self.messages)] = Check(category, calls=tuple(calls))
        self.messages.append(call_message(calls))

    def result(self, ok: bool) -> None:
        self.messages.append(
            {"role": "tool", "content": json.dumps({"ok": True} if ok else {"ok": False, "error": "no answer"})}
        )

    def acknowledged(self, done: str, name: str, state: str) -> bool:
        """Adds the tool's result and what is said about it; one call in twelve fails."""
        ok = self.rng.random() > 0.08
        self.result(ok)
        if ok:
            self.answer(done, Check("acknowledgement", all=(name, state)))
        else:
            self.answer(f"Sorry, the {name} does not answer.", Check("acknowledgement", all=("sorry", name)))
        return ok

    # Commands

    def switch(self, device: Device, verb: str, sentence: str, called: str) -> None:
        self.command(sentence, called)
        self.calls([(verb, {"device": device.name})], "command")
        if self.acknowledged(
            f"The {device.name} is now {STATE_AFTER[verb]}.", device.name, f"is now {STATE_AFTER[verb]}"
        ):
            device.state, device.percent = STATE_AFTER[verb], None
            self.home.changed.add(device.name)
        self.last = (device, verb)

    def do_switch(self) -> None:
        device = self.rng.choice(self.home.devices)
        verb = self.rng.choice(COMMANDS_OF[device.group])
        called = self.called(device)
        self.switch(device, verb, self.pick(patterns.COMMANDS[verb]).format(d=called), called)

    def do_again(self) -> None:
        if self.last is None:
            return self.do_switch()
        device, verb = self.last
        verb = OPPOSITE.get(verb, "turn_off")
        self.switch(device, verb, self.pick(patterns.AGAIN[verb]), device.name)

    def do_pair(self) -> None:
        devices = self.home.group(LIGHT) + self.home.group(SWITCH)
        if len(devices) < 2:
            return self.do_switch()
        one, two = self.rng.sample(devices, 2)
        verb = self.rng.choice(("turn_on", "turn_off"))
        called = self.called(one), self.called(two)
        self.command(self.pick(patterns.PAIRS[verb]).format(d=called[0], e=called[1]), *called)
        self.calls([(verb, {"device": one.name}), (verb, {"device": two.name})], "command, two devices")
        self.result(True)
        self.result(True)
        state = STATE_AFTER[verb]
        self.answer(f"The {one.name} and the {two.name} are now {state}.",
                    Check("acknowledgement", all=(one.name, two.name, f"are now {state}")))  # fmt: skip
        for device in (one, two):
            device.state, device.percent = state, None
            self.home.changed.add(device.name)

    def do_all_lights(self) -> None:
        verb = self.rng.choice(("turn_on", "turn_off"))
        self.command(self.pick(patterns.ALL_LIGHTS[verb]))
        self.calls([(verb, {"device": ALL_LIGHTS})], "command")
        self.result(True)
        state = STATE_AFTER[verb]
        self.answer(f"All lights are now {state}.", Check("acknowledgement", all=(f"all lights are now {state}",)))
        for device in self.home.group(LIGHT):
            device.state, device.percent = state, None
            self.home.changed.add(device.name)

    def do_brightness(self) -> None:
        device = self.rng.choice(self.home.group(LIGHT))
        percent = self.rng.randint(1, 20) * 5 if self.rng.random() < 0.8 else self.rng.randint(1, 100)
        called = self.called(device)
        self.command(self.pick(patterns.COMMANDS["set_brightness"]).format(d=called, n=percent), called)
        self.calls([("set_brightness", {"device": device.name, "percent": percent})], "command")
        if self.acknowledged(f"The {device.name} is now at {percent} percent.", device.name, f"{percent} percent"):
            device.state, device.percent = "on", percent
            self.home.changed.add(device.name)
        self.last = (device, "turn_on")

    def do_temperature(self) -> None:
        room, degrees = self.rng.choice(list(self.home.rooms)), self.rng.randint(10, 30)
        self.command(self.pick(patterns.COMMANDS["set_temperature"]).format(r=room, n=degrees), room)
        self.calls([("set_temperature", {"room": room, "degrees": degrees})], "command")
        self.acknowledged(f"The {room} is set to {degrees} degrees.", room, f"{degrees} degrees")

    def do_timer(self) -> None:
        minutes = self.rng.randint(2, 60) if self.rng.random() < 0.85 else self.rng.randint(61, 100)
        self.command(self.pick(patterns.COMMANDS["set_timer"]).format(n=minutes))
        self.calls([("set_timer", {"minutes": minutes})], "command")
        self.result(True)
        self.answer(f"The timer is set for {minutes} minutes.", Check("acknowledgement", all=(f" {minutes} minutes",)))

    def absent(self, name: str) -> None:
        text = f"{name} is not in this home."
        self.answer(f"The {text}", Check("refusal, no such device", all=(text,)))

    def do_absent(self) -> None:
        """A command or question about a device that is not there."""
        group = self.rng.choice(list(COMMANDS_OF))
        name = homes.fresh_name(self.rng, self.split, self.home.kinds[group], self.home.taken())
        if self.rng.random() < 0.6:
            verb = self.rng.choice(COMMANDS_OF[group])
            self.command(self.pick(patterns.COMMANDS[verb]).format(d=name), name)
        else:
            asked = {LIGHT: "state_on", SWITCH: "state_on", DOOR: "locked", COVER: "open"}[group]
            self.question(self.pick(patterns.QUESTIONS[asked]).format(d=name), name)
        self.absent(name)

    def do_absent_room(self) -> None:
        room = homes.fresh_room(self.rng, self.split, self.home.taken())
        if self.rng.random() < 0.5:
            degrees = self.rng.randint(10, 30)
            self.command(self.pick(patterns.COMMANDS["set_temperature"]).format(r=room, n=degrees), room)
        else:
            self.question(self.pick(patterns.QUESTIONS["temperature"]).format(r=room), room)
        self.absent(room)

    # Questions about the home

    def describe(self, device: Device) -> str:
        level = f" at {device.percent} percent" if device.percent is not None else ""
        return f"The {device.name} is {device.state}{level}."

    def state_check(self, device: Device) -> Check:
        others = tuple(f"is {state}" for state in homes.STATES[device.group] if state != device.state)
        level = (f"{device.percent} percent",) if device.percent is not None else ()
        category = "state, one device" if device.name not in self.home.changed else "state, after a command"
        return Check(category, all=(device.name, f"is {device.state}", *level), none=others)

    def do_state(self) -> None:
        changed = [device for device in self.home.devices if device.name in self.home.changed]
        device = self.rng.choice(changed if changed and self.rng.random() < 0.4 else self.home.devices)
        asked = {LIGHT: ("state_on", "state_on", "state_off", "state"), SWITCH: ("state_on", "state_on", "state_off", "state"),
                 DOOR: ("locked", "locked", "unlocked", "state"), COVER: ("open", "open", "closed", "state")}  # fmt: skip
        kind = self.rng.choice(asked[device.group])
        called = self.called(device)
        self.question(self.pick(patterns.QUESTIONS[kind]).format(d=called), called)
        self.answer(self.describe(device), self.state_check(device))
        if self.rng.random() < 0.25:
            device = self.rng.choice(self.home.devices)
            called = self.called(device)
            self.question(self.pick(patterns.THEN).format(d=called), called)
            self.answer(self.describe(device), self.state_check(device))

    def do_room(self) -> None:
        room, degrees = self.rng.choice(list(self.home.rooms.items()))
        self.question(self.pick(patterns.QUESTIONS["temperature"]).format(r=room), room)
        text = f"{room} is at {degrees} degrees."
        self.answer(f"The {text}", Check("temperature", all=(text,)))

    def do_general(self) -> None:
        kind = self.rng.choice(("outside", "weather", "time", "day", "time"))
        self.question(self.pick(patterns.QUESTIONS[kind]))
        home = self.home
        if not (home.clock if kind in ("time", "day") else home.weather):
            self.answer(REFUSE_QUESTION, Check("refusal, not known", all=("sorry, i",)))
        elif kind == "outside":
            self.answer(
                f"It is {home.outside_c} degrees outside.",
                Check("time and weather", all=(f" {home.outside_c} degrees",)),
            )
        elif kind == "weather":
            text = f"The weather is {home.weather}, with {home.outside_c} degrees."
            self.answer(text, Check("time and weather", all=(home.weather, f" {home.outside_c} degrees")))
        elif kind == "time":
            self.answer(f"It is {home.clock}.", Check("time and weather", all=(f" {home.clock}.",)))
        else:
            self.answer(f"It is {home.day}.", Check("time and weather", all=(home.day,)))

    def do_list(self) -> None:
        """Lists are asked for as long as no command has changed a device: a server renews the state with each request."""
        kind = self.rng.choice(("lights_on", "lights_on", "lights_off", "lights_all", "doors_unlocked", "rooms"))
        if self.home.changed and kind in ("lights_on", "lights_off", "doors_unlocked"):
            kind = "lights_all"
        lights, doors = self.home.group(LIGHT), self.home.group(DOOR)
        if kind == "doors_unlocked" and not doors:
            return self.do_state()
        if kind == "rooms":
            title, found, missing = "Rooms", list(self.home.rooms), list[str]()
        elif kind == "lights_all":
            title, found, missing = "Lights", [light.name for light in lights], []
        else:
            group, state = (doors, "unlocked") if kind == "doors_unlocked" else (lights, kind.removeprefix("lights_"))
            title = f"{LABELS[group[0].group]} {state}"
            found = [device.name for device in group if device.state == state]
            missing = [device.name for device in group if device.state != state]
        self.question(self.pick(patterns.QUESTIONS[kind]))
        hidden = tuple(name for name in missing if not any(name in other for other in found))
        text = f"{title}: {', '.join(found) or 'none'}."
        self.answer(text, Check("lists", all=(title, *found) if found else (text,), none=hidden))

    # Small talk and refusals

    def do_small_talk(self) -> None:
        kind = self.rng.choice((*patterns.SMALL_TALK, "identity", "identity"))
        if kind == "identity":
            self.user(self.pick(patterns.IDENTITY), True)
            persona = self.home.persona
            self.answer(f"I am {persona}, the assistant of this home.", Check("small talk", all=(persona,)))
        else:
            asked, answers = patterns.SMALL_TALK[kind]
            self.user(self.pick(asked), kind in ("how_are_you", "abilities", "human"))
            self.answer(self.rng.choice(answers), Check("small talk", any=answers))

    def do_repeat(self) -> None:
        count = self.rng.randint(1, 4)
        words = [names.made_up(self.rng, self.split) if self.rng.random() < 0.5 else names.modifier(self.rng, self.split)
                 for _ in range(count)]  # fmt: skip
        text = " ".join(words)
        self.user(self.pick(patterns.REPEAT).format(x=text), False, text)
        self.answer(f"Okay: {text}.", Check("repeat", all=(text,)))

    def topic(self) -> str:
        return self.pick(patterns.TOPICS) if self.rng.random() < 0.6 else names.modifier(self.rng, self.split)

    def do_refuse_action(self) -> None:
        composed = self.split == names.TRAIN and self.rng.random() < 0.5
        sentence = patterns.impossible(self.rng) if composed else self.pick(patterns.CANNOT)
        self.command(sentence.format(x=self.topic()))
        self.answer(REFUSE_ACTION, Check("refusal, not able", all=("sorry, i",)))

    def do_refuse_question(self) -> None:
        composed = self.split == names.TRAIN and self.rng.random() < 0.5
        sentence = patterns.unknown(self.rng) if composed else self.pick(patterns.UNKNOWN)
        self.question(sentence.format(x=self.topic()))
        self.answer(REFUSE_QUESTION, Check("refusal, not known", all=("sorry, i",)))

    def exchange(self) -> None:
        """Writes one request and what follows from it."""
        actions = {
            self.do_switch: 20, self.do_state: 18, self.do_room: 7, self.do_list: 16, self.do_general: 7, self.do_absent: 8,
            self.do_absent_room: 2, self.do_brightness: 6, self.do_temperature: 6, self.do_timer: 5, self.do_pair: 5,
            self.do_all_lights: 2, self.do_again: 4, self.do_small_talk: 7, self.do_repeat: 4, self.do_refuse_action: 6,
            self.do_refuse_question: 6,
        }  # fmt: skip
        self.rng.choices(list(actions), list(actions.values()))[0]()

    def write(self, n_exchanges: int | None = None) -> Conversation:
        """Writes `n_exchanges` requests and what follows from each; three to eight if it is None."""
        for _ in range(n_exchanges or self.rng.choice((3, 4, 5, 6, 7, 8))):
            self.exchange()
        return self.conversation()

    def fill(self, n_characters: int) -> Conversation:
        """Writes requests until the contents have at least `n_characters`: all that fits in a row of training data."""
        while sum(len(str(message)) for message in self.messages) < n_characters:
            self.exchange()
        return self.conversation()

    def conversation(self) -> Conversation:
        return Conversation(self.messages, self.checks, tools=self.rng.random() < 0.15)


def conversations(split: str, seed: int, n_exchanges: int | None = None) -> Iterator[Conversation]:
    """An endless stream of conversations; equal for equal arguments."""
    rng = random.Random(f"{split} {seed}")
    while True:
        yield Writer(rng, split).write(n_exchanges)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write conversations as JSON lines.")
    parser.add_argument("--split", choices=names.SPLITS, default=names.TRAIN)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--exchanges", type=int, help="requests in each conversation (default: three to eight)")
    parser.add_argument(
        "--tools", action="store_true", help="also write the tools of those conversations that name them"
    )
    parser.add_argument("--checks", action="store_true", help="also write what each answer is judged by")
    arguments = parser.parse_args()
    stream = conversations(arguments.split, arguments.seed, arguments.exchanges)
    for _ in range(arguments.count):
        conversation = next(stream)
        line: dict[str, Any] = {"messages": conversation.messages}
        if conversation.tools and arguments.tools:
            line["tools"] = TOOLS
        if arguments.checks:
            line["checks"] = {index: asdict(check) for index, check in conversation.checks.items()}
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
