"""The language model's server: a chat with tools over OpenAI's API, streamed, given up by closing the connection."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from voice_assistant.config import LlmTable
from voice_assistant.errors import ServerError
from voice_assistant.home import ToolCall
from voice_assistant.tools import TOOLS

_LONGEST_LINE = 1 << 20
Message = dict[str, Any]


class Chat:
    """One request's answer. Iterate over it for pieces of text; afterwards `calls` has the tools to call.

    `abort` may be called from another thread: the server sees the connection close and stops computing.
    """

    def __init__(self, table: LlmTable, messages: Sequence[Message]) -> None:
        self._table, self._messages = table, list(messages)
        self._calls: dict[int, dict[str, str]] = {}
        self._connection: http.client.HTTPConnection | None = None
        self._lock = threading.Lock()
        self.aborted = False

    def __iter__(self) -> Iterator[str]:
        """Raises ServerError, unless it was aborted."""
        try:
            yield from self._stream()
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            if not self.aborted:
                raise ServerError(
                    f"{self._table.url}: no answer from the language model's server: {error or type(error).__name__}; "
                    "is it running? (edgellm service install)"
                ) from error
        finally:
            self._close()

    def abort(self) -> None:
        self.aborted = True
        self._close()

    @property
    def calls(self) -> list[ToolCall]:
        """Raises ServerError if the server's tool calls are not what they must be."""
        result = []
        for _, call in sorted(self._calls.items()):
            try:
                arguments = json.loads(call["arguments"] or "{}")
            except (ValueError, RecursionError) as error:
                raise ServerError(f"{self._table.url}: the arguments of a tool call are no JSON") from error
            result.append(ToolCall(call["name"], arguments if isinstance(arguments, dict) else {}))
        return result

    def _stream(self) -> Iterator[str]:
        where = urlsplit(self._table.url)
        body: dict[str, Any] = {
            "messages": self._messages,
            "stream": True,
            "temperature": 0,
            "max_tokens": self._table.max_tokens,
            "tools": TOOLS,
        }
        if self._table.model:
            body["model"] = self._table.model
        connection = http.client.HTTPConnection(
            where.hostname or "127.0.0.1", where.port or 80, timeout=self._table.timeout_s
        )
        with self._lock:
            if self.aborted:
                return
            self._connection = connection
        headers = {"Content-Type": "application/json"}
        connection.request("POST", f"{where.path.rstrip('/')}/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            said = answer.read(4096).decode("utf-8", "replace")
            raise ServerError(f"{self._table.url}: status {answer.status}: {_message(said)}")
        while line := answer.readline(_LONGEST_LINE):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            if text := self._take(json.loads(data)):
                yield text
        if not self.aborted:
            raise ServerError(f"{self._table.url}: the answer ends in the middle; is the server still running?")

    def _take(self, event: Any) -> str:
        """The text of one event; its parts of tool calls are kept."""
        if not isinstance(event, dict):
            raise ValueError("an event is no object")
        if "error" in event:
            raise ServerError(f"{self._table.url}: {_message(json.dumps(event))}")
        choices = event.get("choices") or [{}]
        delta = choices[0].get("delta") or {}
        for part in delta.get("tool_calls") or []:
            call = self._calls.setdefault(int(part.get("index", 0)), {"name": "", "arguments": ""})
            function = part.get("function") or {}
            call["name"] += str(function.get("name") or "")
            call["arguments"] += str(function.get("arguments") or "")
        text = delta.get("content")
        return text if isinstance(text, str) else ""

    def _close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            sock = connection.sock
            if sock is not None:
                with contextlib.suppress(OSError):  # it is closed already
                    sock.shutdown(socket.SHUT_RDWR)
            connection.close()


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return text[:300]
