"""Tuning results: which knobs were found for which kernel on which kind of board, and how they reach the compiler.

Shipped results lie in boards/tuned/, a user's own in tuned/ of the user's data directory (XDG_DATA_HOME), which win.
A file is named after the board's type and holds JSON:

    {"format": 1, "results": [{"key": {soc, cores, threads, tier, template, tvm}, "kernels": {WORKLOAD:
        {"knobs": {...}, "default_us": …, "best_us": …, "p": …, "gain": …}}}]}

A result counts where everything in its key but the number of threads is as it is now; of several, the one for most
threads. Results change speed, never what a model answers.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crosscompile.data import data_path
from edgellm.boards import Board
from edgellm.errors import BoardError
from edgellm.files import write_atomically

FORMAT = 1
TEMPLATE_REVISION = 2
"""crosscompile.kernels.linear.TEMPLATE_REVISION, which cannot be imported here without TVM; a test compares them."""

_KNOBS = ("tokens", "groups", "ahead", "block")
_MOST = 4096


@dataclass(frozen=True)
class Key:
    """What a result belongs to. soc: the processor by name; cores: fast ones/all; tier: its instructions."""

    soc: str
    cores: str
    threads: int
    tier: str
    template: int
    tvm: str

    def fits(self, other: Key) -> bool:
        """Whether results of one count for the other: everything but the threads."""
        return {**asdict(self), "threads": 0} == {**asdict(other), "threads": 0}


def key_for(board: Board, threads: int) -> Key:
    """The key of results that are found now."""
    section = board.target_section
    cores = f"{section.n_fast_cores or section.n_cores}/{section.n_cores}"
    tvm = importlib.metadata.version("apache-tvm")
    return Key(section.cpu, cores, threads, board.target().tier.name, TEMPLATE_REVISION, tvm)


def user_folder() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "edgellm" / "tuned"


def shipped_folder() -> Path:
    return data_path("boards") / "tuned"


def lookup(board: Board) -> dict[str, dict[str, int]]:
    """Knobs by workload for a board: shipped results, and the user's in their place. Raises BoardError."""
    return {
        workload: entry["knobs"]
        for folder in (shipped_folder(), user_folder())
        for workload, entry in _fitting(read(folder / f"{board.id}.json"), key_for(board, 0)).items()
    }


def _fitting(results: list[dict[str, Any]], key: Key) -> dict[str, Any]:
    fitting = [result for result in results if Key(**result["key"]).fits(key)]
    found: dict[str, Any] = {}
    for result in sorted(fitting, key=lambda result: int(result["key"]["threads"])):
        found.update(result["kernels"])
    return found


def read(path: Path) -> list[dict[str, Any]]:
    """The results of a file; none if it does not exist. Raises BoardError, with the field, if it is malformed."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise BoardError(f"{path}: cannot be read: {error}; remove it and tune again") from error
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(results, list) or document.get("format") != FORMAT:
        raise BoardError(f"{path}: format: must be {FORMAT}, with a list of results; remove it and tune again")
    for result in results:
        _check(result, path)
    return results


def _check(result: Any, path: Path) -> None:
    if not isinstance(result, dict) or not isinstance(result.get("kernels"), dict):
        raise BoardError(f"{path}: results: each must have a key and kernels; remove the file and tune again")
    try:
        Key(**result["key"])
    except (TypeError, KeyError) as error:
        raise BoardError(f"{path}: key: {error}; remove the file and tune again") from error
    for workload, entry in result["kernels"].items():
        knobs = entry.get("knobs") if isinstance(entry, dict) else None
        if not isinstance(knobs, dict) or set(knobs) != set(_KNOBS):
            raise BoardError(f"{path}: {workload}: knobs must be {', '.join(_KNOBS)}; remove the file and tune again")
        for name, value in knobs.items():
            if type(value) is not int or not (-1 if name == "ahead" else 1) <= value <= _MOST:
                raise BoardError(
                    f"{path}: {workload}: {name}: {value!r} is out of range; remove the file and tune again"
                )


def save(path: Path, key: Key, kernels: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds results to a file, in place of those for the same key and workload; what no longer fits TVM goes."""
    results = [result for result in read(path) if result["key"]["template"] == key.template]
    same = next((result for result in results if Key(**result["key"]) == key), None)
    if same is None:
        same = {"key": asdict(key), "kernels": {}}
        results.append(same)
    same["kernels"] = dict(sorted({**same["kernels"], **kernels}.items()))
    write_atomically(path, (json.dumps({"format": FORMAT, "results": results}, indent=1) + "\n").encode())
