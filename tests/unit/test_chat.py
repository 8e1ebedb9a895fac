"""Conversations as files, and which part of an answer is complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgellm.chat_screen import complete
from edgellm.errors import UsageError
from edgellm.transcript import Transcript, load, save

GOOD = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\ud800"}]


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    transcript = Transcript("model", "system", GOOD)
    save(transcript, tmp_path / "folder" / "a.json")
    assert load(tmp_path / "folder" / "a.json") == transcript


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "x"}, "is no conversation"),
        ({"version": 2}, "version 2 is not 1; update edgellm"),
        ({"system": 1}, "system must be a text or null"),
        ({"messages": GOOD[:1]}, "in turn"),
        ({"messages": GOOD[::-1]}, r"messages\[0\] must have the role user"),
        ({"messages": [GOOD[0], {"role": "assistant", "content": ""}]}, r"messages\[1\]"),
        ({"messages": [1, 2]}, r"messages\[0\]"),
        ({"messages": {}}, "must be a list"),
    ],
)
def test_what_is_no_conversation_is_refused_by_name(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    file = tmp_path / "a.json"
    document = {"format": "edgellm-conversation", "version": 1, "model": "m", "system": None, "messages": GOOD}
    file.write_text(json.dumps({**document, **change}))
    with pytest.raises(UsageError, match=text) as caught:
        load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b" " * 4_000_001])
def test_rubbish_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(data)
    with pytest.raises(UsageError):
        load(file)


def test_blocks_are_complete_when_something_else_begins() -> None:
    assert complete("one\n\n") == 0  # what follows could still belong to it
    assert complete("one\n\ntwo") == 5
    assert complete("- one\n\n  still one\n\nnext") == len("- one\n\n  still one\n\n")
    code = "```\na\n\nb\n"
    assert complete(code) == 0
    assert complete(code + "```\n\nnext") == len(code) + 5
    assert complete("~~~~\n\n```\n\n~~~\n\nx") == 0
