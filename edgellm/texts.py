"""Texts that a model is measured or calibrated on, and their tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosscompile.checkpoint import Checkpoint
from edgellm.errors import ModelError, UsageError


@dataclass(frozen=True)
class Text:
    """A text and the spans of characters that are measured: a conversation's answers, or everything."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Sample:
    """Token ids and the positions whose prediction, the next token, is measured."""

    ids: list[int]
    positions: list[int]


def read_texts(file: Path, source: Checkpoint) -> list[Text]:
    """Texts of a file: .jsonl with {"messages": […]} or {"text": "…"} per line, else paragraphs of plain text.

    Conversations are rendered with the checkpoint's chat template. Raises UsageError for what is neither.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as text: {error}") from error
    if file.suffix != ".jsonl":
        return [_whole(part.strip()) for part in content.split("\n\n") if part.strip()]
    texts = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{file}: line {number} is not JSON ({error})") from error
        if isinstance(entry, dict) and isinstance(entry.get("messages"), list):
            texts.append(_conversation(source, entry))
        elif isinstance(entry, dict) and isinstance(entry.get("text"), str):
            texts.append(_whole(entry["text"]))
        else:
            raise UsageError(f'{file}: line {number} has neither "messages" nor "text"')
    return texts


def _whole(text: str) -> Text:
    return Text(text, ((0, len(text)),))


def _conversation(source: Checkpoint, entry: dict[str, Any]) -> Text:
    """A rendered conversation; what is measured is what follows each generation prompt."""
    messages = entry["messages"]
    full = _render(source, entry)
    spans = []
    for index, message in enumerate(messages):
        if index and isinstance(message, dict) and message.get("role") == "assistant":
            before = _render(source, {**entry, "messages": messages[:index], "add_generation_prompt": True})
            after = _render(source, {**entry, "messages": messages[: index + 1]})
            if after.startswith(before) and full.startswith(after):
                spans.append((len(before), len(after)))
    return Text(full, tuple(spans)) if spans else _whole(full)


def _render(source: Checkpoint, entry: dict[str, Any]) -> str:
    """A conversation as text, as transformers' apply_chat_template makes it."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if source.chat_template is None:
        raise UsageError(f'{source.path} has no chat template; give plain text or lines with "text"')
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        return environment.from_string(source.chat_template).render(**source.special_tokens, **entry)
    except TemplateError as error:
        raise UsageError(f"the chat template cannot render a conversation: {error}") from error


def encode(source: Checkpoint, texts: Sequence[Text], n_tokens: int) -> list[Sample]:
    """Samples of at most n_tokens; texts with nothing to measure are left out."""
    from tokenizers import Tokenizer

    if source.tokenizer_json is None:
        raise ModelError(f"{source.path} has no tokenizer.json")
    tokenizer = Tokenizer.from_str(source.tokenizer_json.decode("utf-8"))
    samples = []
    for text in texts:
        encoding = tokenizer.encode(text.text, add_special_tokens=False)
        starts = [start for start, _ in encoding.offsets[1:n_tokens]]
        positions = [at for at, start in enumerate(starts) if any(low <= start < high for low, high in text.spans)]
        if positions:
            samples.append(Sample(encoding.ids[:n_tokens], positions))
    return samples
