"""Whether an answer of the assistant is right."""

from __future__ import annotations

import json
import re
from typing import Any

from conversations import Check

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


def calls_in(answer: str) -> list[tuple[str, dict[str, Any]]] | None:
    """The tool calls of an answer, or None if one is not valid JSON of the agreed form."""
    calls: list[tuple[str, dict[str, Any]]] = []
    for text in _CALL.findall(answer):
        try:
            call = json.loads(text)
            calls.append((call["name"], call["arguments"]))
        except (json.JSONDecodeError, KeyError, TypeError):
            return None
    return calls


def right(answer: str, check: Check) -> bool:
    """Whether an answer passes its check; letter case does not matter in sentences, it does in tool calls."""
    if check.calls:
        return calls_in(answer) == list(check.calls) and not _CALL.sub("", answer).strip()
    if "<tool_call>" in answer:
        return False
    if check.any:
        return answer.strip() in check.any
    lower = f" {answer.lower()}"
    return all(fact.lower() in lower for fact in check.all) and not any(fact.lower() in lower for fact in check.none)
