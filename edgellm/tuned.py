"""Tuning results: which knobs were found for which kernel on which kind of board, and how they reach the compiler.

Shipped results lie in boards/tuned/, a user's own in tuned/ of the user's data directory (XDG_DATA_HOME), which win.
A file is named after the board's type and holds JSON:

    {"format": 1, "results": [{"key": {soc, cores, threads, tier, template, tvm}, "kernels": {WORKLOAD:
        {"knobs": {...}, "default_us": …, "best_us": …, "p": …}}}]}

A result counts where everything in its key but the number of threads is as it is now; of several, the one for most
threads. For a GPU the key is {gpu, schedule, limits, template, tvm}, and all of it counts. Results change speed, never
what a model answers; on a GPU, sums may be ordered differently.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from crosscompile.data import data_path
from edgellm.boards import Board
from edgellm.errors import BoardError
from edgellm.files import write_atomically

FORMAT = 1
TEMPLATE_REVISION = 3
"""crosscompile.kernels.linear.TEMPLATE_REVISION, which cannot be imported here without TVM; a test compares them."""

GPU_TEMPLATE_REVISION = 5
"""crosscompile.gpu.knobs.TEMPLATE_REVISION, likewise."""

_KNOBS = (("tokens", "groups", "ahead", "block"), ("tokens", "groups", "ahead", "block", "parts"))
"""Those of a linear layer by earlier revisions, and those by this one."""
_GPU_KNOBS = (("threads", "rows", "tile"), ("threads", "team", "loads"), ("splits",))
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

    def fits(self, other: Key | GpuKey) -> bool:
        """Whether results of one count for the other: everything but the threads."""
        return isinstance(other, Key) and {**asdict(self), "threads": 0} == {**asdict(other), "threads": 0}


@dataclass(frozen=True)
class GpuKey:
    """What a result for a GPU belongs to. gpu: by name; schedule: its class; limits: what else decides its kernels."""

    gpu: str
    schedule: str
    limits: str
    template: int
    tvm: str

    def fits(self, other: Key | GpuKey) -> bool:
        """Whether results of one count for the other."""
        return self == other


AnyKey = Key | GpuKey


def gpu_key_for(board: Board) -> GpuKey:
    """The key of results that are found now for a board's GPU. Raises BoardError if none is known."""
    board = replace(board, vulkan=board.gpu())
    gpu, section = board.gpu_target().gpu, board.vulkan
    assert gpu is not None
    assert section is not None
    numbers = (gpu.invocations, gpu.shared_bytes, gpu.buffers, gpu.binding_bytes)
    limits = " ".join([*sorted(gpu.capabilities), *map(str, numbers), *(["mixed"] if gpu.mixed else [])])
    tvm = importlib.metadata.version("apache-tvm")
    return GpuKey(section.device, gpu.schedule, limits, GPU_TEMPLATE_REVISION, tvm)


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


def lookup(board: Board, device: str = "cpu") -> dict[str, dict[str, int]]:
    """Knobs by workload for a board's processor or, "vulkan", its GPU: shipped results, and the user's in their place.

    Raises BoardError.
    """
    key = gpu_key_for(board) if device == "vulkan" else key_for(board, 0)
    return {
        workload: entry["knobs"]
        for folder in (shipped_folder(), user_folder())
        for workload, entry in _fitting(read(folder / f"{board.id}.json"), key).items()
    }


def _key_of(result: Mapping[str, Any]) -> AnyKey:
    """The key of a result. Raises TypeError or KeyError if it is none."""
    key = result["key"]
    return GpuKey(**key) if "gpu" in key else Key(**key)


def _fitting(results: list[dict[str, Any]], key: AnyKey) -> dict[str, Any]:
    fitting = [result for result in results if _key_of(result).fits(key)]
    found: dict[str, Any] = {}
    for result in sorted(fitting, key=lambda result: int(result["key"].get("threads", 0))):
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
        key = _key_of(result)
    except (TypeError, KeyError) as error:
        raise BoardError(f"{path}: key: {error}; remove the file and tune again") from error
    for workload, entry in result["kernels"].items():
        knobs = entry.get("knobs") if isinstance(entry, dict) else None
        known = _GPU_KNOBS if isinstance(key, GpuKey) else _KNOBS
        if not isinstance(knobs, dict) or set(knobs) not in map(set, known):
            names = " or ".join(", ".join(each) for each in known)
            raise BoardError(f"{path}: {workload}: knobs must be {names}; remove the file and tune again")
        for name, value in knobs.items():
            if type(value) is not int or not (-1 if name == "ahead" else 1) <= value <= _MOST:
                raise BoardError(
                    f"{path}: {workload}: {name}: {value!r} is out of range; remove the file and tune again"
                )


def save(path: Path, key: AnyKey, kernels: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds results to a file, in place of those for the same key and workload; what no longer fits goes."""
    results = [result for result in read(path) if _is_current(_key_of(result))]
    same = next((result for result in results if _key_of(result) == key), None)
    if same is None:
        same = {"key": asdict(key), "kernels": {}}
        results.append(same)
    same["kernels"] = dict(sorted({**same["kernels"], **kernels}.items()))
    write_atomically(path, (json.dumps({"format": FORMAT, "results": results}, indent=1) + "\n").encode())


def _is_current(key: AnyKey) -> bool:
    """Whether kernels are still made as they were when a result was found."""
    return key.template == (GPU_TEMPLATE_REVISION if isinstance(key, GpuKey) else TEMPLATE_REVISION)
