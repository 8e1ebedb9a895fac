"""A conversation with a model on a board: `edgellm-rt chat --jsonl`, one JSON object per line each way.

What the board sends is untrusted: lines are bounded, every message is checked, and text is returned with the
characters removed that would command a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgellm.errors import CommandError, LinkError, RuntimeFailedError
from edgellm.runtime_program import InstalledModel, ended, failure
from edgellm.terminal import one_line, printable

Message = dict[str, str]
"""role: "user" or "assistant"; content."""

_LINE_CAP = 1 << 20
_POLL_S = 0.1
_ANSWER_S = 600.0  # a long prompt on a slow board is silent for minutes before the first token


@dataclass(frozen=True)
class Done:
    """How an answer ended. reason: "stop", "length" or "cancelled"; times in milliseconds."""

    reason: str
    prompt_tokens: int
    tokens: int
    prefill_ms: float
    decode_ms: float

    @property
    def decode_tok_s(self) -> float:
        return 1000 * self.tokens / self.decode_ms if self.decode_ms > 0 else 0.0

    @property
    def prefill_tok_s(self) -> float:
        return 1000 * self.prompt_tokens / self.prefill_ms if self.prefill_ms > 0 else 0.0


@dataclass
class Answer:
    """Filled while an answer streams. notices: what the runtime wants the user to know."""

    done: Done | None = None
    notices: list[str] = field(default_factory=list)


class Chat:
    """A conversation; the board keeps its history. Use it as a context manager.

    with Chat(model) as chat:
        for piece in chat.ask("Hello"):
            print(piece, end="", flush=True)

    session: a file on the board: the conversation in it is gone on with, and left there at the end with what was
    computed of it. system, messages: what was said so far; the board leaves out the oldest turns where they do not fit
    its context. model: from find_model or connect(...). argv: further options of `edgellm-rt chat`.
    Raises RuntimeFailedError if the model does not open, RemoteError if the board goes away.
    """

    def __init__(
        self, model: InstalledModel, system: str | None = None, argv: Sequence[str] = (), session: str | None = None
    ) -> None:
        self._remote = model.remote
        options = ["--jsonl", *(("--system", system) if system is not None else ()), *argv]
        options += ["--session", session] if session is not None else []
        self._keeps = session is not None
        self._process = model.remote.start(model.argv("chat", *options), silence_s=_ANSWER_S)
        self._buffer = bytearray()
        self.answer = Answer()
        self.system = system
        self.messages: list[Message] = []
        try:
            self.ready = self._expect_ready()
            self._take_up(self.ready.get("messages", []))
        except BaseException:
            self._process.close()
            raise

    def ask(self, text: str, cancelled: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Says `text` and yields the answer as it comes; `answer.done` is set at the end.

        cancelled: asked ten times a second or more; once it is true the board is told to stop, and the answer ends.
        Raises RuntimeFailedError if this one message cannot be answered; the conversation goes on.
        """
        self.answer = Answer()
        self._send(type="user", text=text)
        said: list[str] = []
        try:
            yield from self._answer(said, cancelled)
        finally:
            if any(said):  # as the board does: without an answer, the question is taken back
                self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "".join(said)}]

    def _answer(self, said: list[str], cancelled: Callable[[], bool]) -> Iterator[str]:
        told = False
        while self.answer.done is None:
            if cancelled() and not told:
                self._send(type="cancel")
                told = True
            message = self._receive(_POLL_S)
            if message is None:
                continue
            kind = message["type"]
            if kind == "text":
                said.append(self._text(message))
                yield printable(said[-1])
            elif kind == "notice":
                self.answer.notices.append(one_line(self._text(message)))
            elif kind == "error":
                raise self._failed(message)
            elif kind == "done":
                self.answer.done = self._done(message)

    def reset(self) -> None:
        """Forgets everything but the system prompt."""
        self._send(type="reset")
        self.messages = []

    def set_system(self, text: str) -> None:
        """Another system prompt, from the next question on; "" for none."""
        self._send(type="system", text=text)
        self.system = text or None

    def set_history(self, system: str | None, messages: Sequence[Message]) -> None:
        """Takes up another conversation: questions and answers in turn. Raises RuntimeFailedError if it is none."""
        before = [{"role": "system", "content": system}] if system else []
        self._send(type="history", messages=[*before, *messages])
        try:
            self._expect("history")
        except RuntimeFailedError as error:
            if error.name == "USAGE" and "history" not in str(error):  # it does not know the word
                raise RuntimeFailedError(
                    f"{self._remote.name}: the edgellm-rt there is too old for this; deploy the model again",
                    "USAGE",
                    -1,
                ) from error
            raise
        self.system, self.messages = system, list(messages)

    @property
    def context(self) -> int:
        """Positions that question, answer and history share; 0 if the board does not say."""
        said = self.ready.get("context")
        return said if type(said) is int and said > 0 else 0

    def close(self) -> None:
        if self._keeps:  # it writes the session when its input ends
            ended(self._process, _ANSWER_S)
        self._process.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _send(self, **message: object) -> None:
        try:
            self._process.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            raise self._ended() from None

    def _expect_ready(self) -> dict[str, Any]:
        while True:
            message = self._receive(_ANSWER_S)
            if message is not None and message["type"] == "notice":
                self.answer.notices.append(one_line(self._text(message)))
            elif message is not None and message["type"] == "ready":
                return message
            else:
                raise self._nonsense(json.dumps(message))

    def _take_up(self, messages: object) -> None:
        for message in messages if isinstance(messages, list) else [None]:
            role = message.get("role") if isinstance(message, dict) else None
            content = message.get("content") if isinstance(message, dict) else None
            if role not in ("system", "user", "assistant") or not isinstance(content, str):
                raise self._nonsense(json.dumps(self.ready))
            if role == "system":
                self.system = content
            else:
                self.messages.append({"role": role, "content": content})

    def _expect(self, kind: str) -> dict[str, Any]:
        message = self._receive(_ANSWER_S)
        if message is None:
            raise LinkError(f"{self._remote.name}: no answer within {_ANSWER_S:.0f} s; check the board")
        if message["type"] == "error":
            raise self._failed(message)
        if message["type"] != kind:
            raise self._nonsense(json.dumps(message))
        return message

    def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None if there is none within timeout_s."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LINE_CAP:
                raise self._nonsense("a line without an end")
            try:
                piece = self._process.read(65536, timeout_s)
            except TimeoutError:
                return None
            if not piece:
                raise self._ended()
            self._buffer += piece
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise self._nonsense(line.decode("utf-8", "replace")) from None
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise self._nonsense(line.decode("utf-8", "replace"))
        return message

    def _text(self, message: dict[str, Any]) -> str:
        text = message.get("text")
        if not isinstance(text, str):
            raise self._nonsense(json.dumps(message))
        return text

    def _done(self, message: dict[str, Any]) -> Done:
        reason = message.get("reason")
        numbers = [message.get(key, 0) for key in ("prompt_tokens", "tokens", "prefill_ms", "decode_ms")]
        if not isinstance(reason, str) or not all(isinstance(n, int | float) and n >= 0 for n in numbers):
            raise self._nonsense(json.dumps(message))
        return Done(one_line(reason, 40), int(numbers[0]), int(numbers[1]), float(numbers[2]), float(numbers[3]))

    def _failed(self, message: dict[str, Any]) -> RuntimeFailedError:
        name = one_line(str(message.get("name")), 40)
        return RuntimeFailedError(f"{self._remote.name}: {one_line(self._text(message))} ({name})", name, -1)

    def _nonsense(self, line: str) -> CommandError:
        return CommandError(f"{self._remote.name}: edgellm-rt said something unexpected: {one_line(line, 120)}")

    def _ended(self) -> Exception:
        status = self._process.wait()
        errors = self._process.errors()
        if status == 0:
            return CommandError(f"{self._remote.name}: edgellm-rt ended the conversation: {one_line(errors)}", 0)
        return failure(self._remote, "edgellm-rt chat", status, errors)
