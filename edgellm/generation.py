"""The manifest's `generation` section: when an answer ends, and the model's recommended sampling."""

from __future__ import annotations

from typing import Any

from crosscompile.checkpoint import Checkpoint
from crosscompile.errors import CheckpointError

SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def _ids(source: Checkpoint, file: str, value: object, vocab_size: int) -> list[int]:
    ids: list[int] = []
    for token in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise CheckpointError(
                f"{source.path / file}: token id {token!r} is not in the vocabulary of {vocab_size}; correct it"
            )
        ids.append(token)
    return ids


def generation(source: Checkpoint, vocab_size: int) -> dict[str, Any]:
    """stop_ids, bos_id and sampling options, from generation_config.json, else config.json.

    Sampling is recommended only where generation_config.json says do_sample; otherwise answers are greedy.
    Raises CheckpointError for ids outside the vocabulary and options that are not numbers.
    """
    config, advice = source.config, source.generation_config
    stop: list[int] = []
    for file, value in (
        ("generation_config.json", advice.get("eos_token_id")),
        ("config.json", config.get("eos_token_id")),
    ):
        stop += _ids(source, file, value, vocab_size)
    section: dict[str, Any] = {"stop_ids": sorted(set(stop))}
    bos = _ids(source, "config.json", advice.get("bos_token_id", config.get("bos_token_id")), vocab_size)
    if bos:
        section["bos_id"] = bos[0]
    wanted = [*(SAMPLING if advice.get("do_sample") else ()), "repetition_penalty"]
    for key in wanted:
        value = advice.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(f"{source.path / 'generation_config.json'}: {key} must be a number, not {value!r}")
        section[key] = value
    if advice.get("do_sample"):
        section.setdefault("temperature", 1.0)
    return section
