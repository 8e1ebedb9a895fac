"""A conversation as a file: JSON that another program, or another day, can take up again.

    {"format": "edgellm-conversation", "version": 1, "model": "smollm2", "system": null,
     "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]}

Messages are questions and answers in turn, as OpenAI's API has them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.conversation import Message
from edgellm.errors import UsageError
from edgellm.files import write_atomically

FORMAT, VERSION = "edgellm-conversation", 1
_MOST_BYTES = 4_000_000  # the board takes lines of 8 MB


@dataclass(frozen=True)
class Transcript:
    """model: who answered. system: the system prompt, or None."""

    model: str
    system: str | None
    messages: Sequence[Message]


def save(transcript: Transcript, file: Path) -> None:
    """Raises UsageError if the file cannot be written."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "model": transcript.model,
        "system": transcript.system,
        "messages": list(transcript.messages),
    }
    try:
        write_atomically(file, (json.dumps(document, indent=1) + "\n").encode(), mode=0o600)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}; choose another place") from error


def load(file: Path) -> Transcript:
    """Raises UsageError, naming file and field, if it cannot be read or is no conversation."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{file} is longer than {_MOST_BYTES // 1_000_000} MB; no conversation is")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not JSON: {error}; /save makes such files") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UsageError(f'{file} is no conversation: its format is not "{FORMAT}"; /save makes such files')
    if document.get("version") != VERSION:
        raise UsageError(f"{file}: version {document.get('version')!r} is not {VERSION}; update edgellm")
    system, messages = document.get("system"), document.get("messages")
    if not isinstance(system, str | None):
        raise UsageError(f"{file}: system must be a text or null")
    if not isinstance(messages, list) or len(messages) % 2:
        raise UsageError(f"{file}: messages must be a list of questions and answers in turn")
    found = [_message(file, index, message) for index, message in enumerate(messages)]
    return Transcript(str(document.get("model", "")), system, found)


def _message(file: Path, index: int, message: object) -> Message:
    role = "assistant" if index % 2 else "user"
    content = message.get("content") if isinstance(message, dict) and message.get("role") == role else None
    if not isinstance(content, str) or not content:
        raise UsageError(f"{file}: messages[{index}] must have the role {role} and a text as content")
    return {"role": role, "content": content}
