"""One answer: from the words that were heard to sound, in a thread of its own, until it ends or is interrupted."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from voice_assistant.chunker import pieces
from voice_assistant.commands import LocalCommands
from voice_assistant.config import LlmTable
from voice_assistant.errors import VoiceError
from voice_assistant.grounding import grounded
from voice_assistant.home import Home, ToolCall
from voice_assistant.latency import Marks
from voice_assistant.llm import Chat, Message
from voice_assistant.recognition import Heard
from voice_assistant.streams import Player
from voice_assistant.synthesis import Synthesizer

MOST_ROUNDS = 3
"""How often one answer may call tools and go on."""
NOT_UNDERSTOOD = "Sorry, I did not understand that."
Listener = Callable[[str, dict[str, Any]], None]
"""Is told what happens: a name, and what belongs to it."""


@dataclass
class Context:
    """What answers need, and what one leaves for the next: the messages, and what "it" may mean."""

    llm: LlmTable
    home: Home
    commands: LocalCommands
    synthesizer: Synthesizer
    player: Player
    listener: Listener
    now: Callable[[], datetime]
    history: list[Message] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)


class Answer(threading.Thread):
    """Answers `heard`. Ends by itself; `abort` makes it end soon, with what was really said in the history."""

    def __init__(self, context: Context, heard: Heard | str, marks: Marks) -> None:
        """heard: words to answer, or a text to say as it is."""
        super().__init__(daemon=True)
        self._context, self._heard, self._marks = context, heard, marks
        self._spoken: list[str] = []
        self._chat: Chat | None = None
        self.aborted = threading.Event()
        self.speaking = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        context = self._context
        try:
            if isinstance(self._heard, str):
                self._say([self._heard])
            elif (local := context.commands.answer(self._heard.text)) is not None:
                self._say([local])
            else:
                self._ask(self._heard.text)
        except VoiceError as error:
            context.listener("error", {"text": str(error)})
            self._apologize()
        except BaseException as error:
            self.error = error  # the main loop raises it
            raise
        finally:
            context.listener("turn", {"stages_ms": self._marks.stages_ms(), "interrupted": self.aborted.is_set()})

    def abort(self) -> None:
        self.aborted.set()
        self._context.player.stop()
        chat = self._chat
        if chat is not None:
            chat.abort()

    # ---- the model ----

    def _ask(self, text: str) -> None:
        context = self._context
        user: Message = {"role": "user", "content": text}
        system = {"role": "system", "content": context.home.prompt(context.llm.persona, context.now())}
        turn: list[Message] = [user]
        targets: list[str] = []
        for _ in range(MOST_ROUNDS):
            self._spoken = []
            self._chat = chat = Chat(context.llm, [system, *context.history, *turn])
            if self.aborted.is_set():
                chat.abort()
            self._say(pieces(self._noted(chat)))
            if self.aborted.is_set():
                break
            calls = chat.calls
            if not calls:
                break
            results = [self._call(call, text) for call in calls]
            if None in results:
                self._say([NOT_UNDERSTOOD])
                return  # nothing of this belongs into the history: the model would repeat it
            targets += [str(call.arguments.get("device", "")) for call in calls]
            turn.append(_calls_message(" ".join(self._spoken), calls))
            turn += [{"role": "tool", "tool_call_id": str(n), "content": result} for n, result in enumerate(results)]
        context.targets[:] = targets
        if self._spoken or len(turn) > 1:
            context.history += [*turn, {"role": "assistant", "content": " ".join(self._spoken)}]
        _shorten(context.history, context.llm.history_turns)

    def _noted(self, chat: Chat) -> Iterator[str]:
        for token in chat:
            self._marks.mark("llm", time.monotonic())
            yield token

    def _call(self, call: ToolCall, text: str) -> str | None:
        """The tool's result as JSON; None if the call has nothing to do with what was said."""
        context = self._context
        told = {"name": call.name, "arguments": dict(call.arguments)}
        if not grounded(call, text, context.targets):
            context.listener("tool", told | {"error": "not what was said"})
            return None
        if call.name == "set_timer":
            minutes = call.arguments.get("minutes")
            context.commands.set_timer(60 * minutes if type(minutes) is int else 0)
            problem = None if type(minutes) is int and minutes > 0 else "no such time"
        else:
            problem = context.home.call(call)
        context.listener("tool", told | ({"error": problem} if problem else {}))
        return json.dumps({"ok": True} if problem is None else {"ok": False, "error": problem})

    # ---- speaking ----

    def _say(self, texts: Iterable[str]) -> None:
        """Speaks pieces as they come; while one is heard, the next is made."""
        ready: queue.Queue[tuple[str, bytes] | None] = queue.Queue(maxsize=1)
        player = threading.Thread(target=self._play, args=(ready,), daemon=True)
        player.start()
        try:
            for text in texts:
                if not text or self.aborted.is_set():
                    continue
                self._marks.mark("sentence", time.monotonic())
                pcm = self._context.synthesizer.say(text)
                self._marks.mark("tts", time.monotonic())
                ready.put((text, pcm))
        finally:
            ready.put(None)
            player.join()

    def _play(self, ready: queue.Queue[tuple[str, bytes] | None]) -> None:
        failed = False
        while (piece := ready.get()) is not None:
            if self.aborted.is_set() or failed:
                continue  # the queue is emptied, so that whoever fills it does not wait
            text, pcm = piece
            self.speaking.set()
            self._context.listener("say", {"text": text})
            self._marks.mark("audio", time.monotonic())
            try:
                share = self._context.player.play(pcm)
            except VoiceError as error:
                self._context.listener("error", {"text": str(error)})
                failed = True
                continue
            words = text.split()
            kept = words if share >= 1 else words[: int(share * len(words))]
            if kept:
                self._spoken.append(" ".join(kept))

    def _apologize(self) -> None:
        try:
            self._say(["Sorry, something went wrong."])
        except VoiceError as error:
            self._context.listener("error", {"text": str(error)})


def _calls_message(text: str, calls: list[ToolCall]) -> Message:
    functions = [
        {
            "id": str(number),
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
        }
        for number, call in enumerate(calls)
    ]
    return {"role": "assistant", "content": text, "tool_calls": functions}


def _shorten(history: list[Message], n_turns: int) -> None:
    """Keeps the last `n_turns` of the user's messages and what follows them."""
    starts = [index for index, message in enumerate(history) if message["role"] == "user"]
    if len(starts) > n_turns:
        del history[: starts[-n_turns] if n_turns else len(history)]
