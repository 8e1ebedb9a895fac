"""What `edgellm bench` measured on a board: a JSON document, and the statistics that tables and plots are made of.

    {"kind": "edgellm bench", "format": 1, "edgellm": …, "taken": …, "board": {…}, "model": {…}, "figures": [figure, …],
     "bandwidth": [{"threads", "gb_s", "low_gb_s", "high_gb_s", "loop"}, …], "memory": {…}, "cold": {…} or null,
     "sustained": [{"threads", "windows": [{"at_s", "s", "tokens"}, …]}, …], "sensors": {…}}

A figure has every sample. Times at_s count from the board's boot. A GPU's bandwidth has "device": "vulkan", 0 threads,
"gpu", "one_memory" and "copy_gb_s"; the model's "gpu_step_bytes" are what the GPU reads of "step_bytes". Results of
older versions have neither: where a GPU computed, the bandwidth in them is the processor's, which says nothing.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import UsageError
from edgellm.terminal import one_line

KIND, FORMAT = "edgellm bench", 1
GPU = "vulkan"
"""The device of a bandwidth that is a GPU's."""

UNITS = {
    "prefill": "tok/s",
    "first_token": "ms",
    "decode": "tok/s",
    "load": "ms",
    "start": "ms",
    "cold_load": "ms",
    "cold_start": "ms",
    "energy": "tok/J",
}
"""Kinds of figures and what their values are in. start: from nothing to the first token; load: opening the bundle."""


@dataclass(frozen=True)
class Figure:
    """Something that was measured, with every sample.

    kind     of UNITS
    tokens   of the prompt; of a decoded answer
    depth    positions in the cache before decoding
    threads  that were asked for; None: as many as the runtime finds fastest
    used     threads that the last sample ran with; None where that says nothing
    """

    kind: str
    values: tuple[float, ...]
    tokens: int = 0
    depth: int = 0
    threads: int | None = None
    used: int | None = None

    @property
    def key(self) -> tuple[str, int, int, int | None]:
        """What the figure is about: two results are compared by it."""
        return self.kind, self.tokens, self.depth, self.threads

    @property
    def name(self) -> str:
        names = {
            "prefill": f"prefill {self.tokens}",
            "first_token": f"first token of {self.tokens}",
            "decode": f"decode at {self.depth}",
            "load": "load, warm",
            "start": "start, warm",
            "cold_load": "load, cold",
            "cold_start": "start, cold",
            "energy": f"energy, decode at {self.depth}",
        }
        return names[self.kind]

    @property
    def unit(self) -> str:
        return UNITS[self.kind]

    @property
    def median(self) -> float:
        return float(statistics.median(self.values))

    @property
    def faster_is_more(self) -> bool:
        return self.unit != "ms"

    def as_json(self) -> dict[str, Any]:
        spread = {"median": self.median, "low": min(self.values), "high": max(self.values), "n": len(self.values)}
        about = {"kind": self.kind, "tokens": self.tokens, "depth": self.depth, "threads": self.threads}
        return {**about, "threads_used": self.used, "unit": self.unit, **spread, "values": list(self.values)}


@dataclass(frozen=True)
class Roofline:
    """How close decoding comes to what the memory can deliver.

    bytes_per_token  weights, and the part of the KV cache that a token reads
    gb_s             what decoding reads at its median speed; limit_gb_s: what the memory can be read at
    """

    bytes_per_token: int
    gb_s: float
    limit_gb_s: float

    @property
    def share(self) -> float:
        return self.gb_s / self.limit_gb_s

    @property
    def limit_tok_s(self) -> float:
        return self.limit_gb_s * 1e9 / self.bytes_per_token


def figures_of(document: Mapping[str, Any]) -> list[Figure]:
    """The document's figures, in its order."""
    return [
        Figure(it["kind"], tuple(it["values"]), it["tokens"], it["depth"], it["threads"], it["threads_used"])
        for it in document["figures"]
    ]


def roofline(figure: Figure, document: Mapping[str, Any]) -> Roofline | None:
    """For a figure of decoding, if the memory was measured of what computes: the GPU, or the processor with as many
    threads. Of both, where layers are split: each reads its part, one after the other.
    """
    if figure.kind != "decode":
        return None
    model = document["model"]
    positions = figure.depth + figure.tokens // 2
    if model["sliding_window"]:
        positions = min(positions, model["sliding_window"])
    n_bytes = model["step_bytes"] + model["kv_bytes_per_token"] * positions
    parts = {"cpu": n_bytes, GPU: 0}
    if document["board"].get("gpu") is not None:
        if model.get("gpu_step_bytes") is None:
            return None
        parts[GPU] = model["gpu_step_bytes"] + (model.get("gpu_kv_bytes_per_token") or 0) * positions
        parts["cpu"] = n_bytes - parts[GPU] if is_split(model["step_bytes"], model["gpu_step_bytes"]) else 0
    rates = {
        it.get("device", "cpu"): it["gb_s"]
        for it in document["bandwidth"]
        if it.get("device") == GPU or it["threads"] == figure.used
    }
    if n_bytes <= 0 or any(parts[device] > 0 and device not in rates for device in parts):
        return None
    limit_s = sum(parts[device] / rates[device] for device in parts if parts[device] > 0)
    return Roofline(n_bytes, figure.median * n_bytes / 1e9, n_bytes / limit_s)


def is_split(step_bytes: int, gpu_step_bytes: int | None) -> bool:
    """Whether the processor has some of the layers."""
    return gpu_step_bytes is not None and gpu_step_bytes < step_bytes


def merge(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One document of several runs of the same figures: their samples one after the other.

    Memory is the most of any run, what slowed the board down counts from all, the rest is the first one's.
    """
    values: dict[tuple[Any, ...], list[Figure]] = {}
    for document in documents:
        for figure in figures_of(document):
            values.setdefault(figure.key, []).append(figure)
    merged = [
        Figure(found[0].kind, tuple(v for it in found for v in it.values), *found[0].key[1:], found[-1].used).as_json()
        for found in values.values()
    ]
    memory = max((document["memory"] for document in documents), key=lambda it: int(it["peak_rss_bytes"]))
    slowed = list(dict.fromkeys(what for document in documents for what in document["sensors"]["slowed_down"]))
    readings = [reading for document in documents for reading in document["sensors"]["readings"]]
    sensors = {**documents[0]["sensors"], "slowed_down": slowed, "readings": readings}
    return {**documents[0], "figures": merged, "memory": memory, "sensors": sensors}


def write(document: Mapping[str, Any], file: Path) -> None:
    """Raises UsageError if the file cannot be written."""
    try:
        file.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error


def read(file: Path) -> dict[str, Any]:
    """A saved result, checked. Raises UsageError naming file, field and remedy."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{file} is not a result of `edgellm bench --json FILE`: {one_line(str(error), 120)}"
        ) from error
    try:
        _check(document)
    except _WrongError as wrong:
        raise UsageError(f"{file} is not a result of `edgellm bench --json FILE` of this version: {wrong}") from None
    return dict(document)


class _WrongError(Exception):
    """What is wrong with a document."""


_TEXT, _WHOLE, _REAL, _LIST, _TABLE = "a text", "a whole number", "a number", "a list", "an object"


def _is(value: Any, kind: str) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    kinds = {
        _TEXT: isinstance(value, str) and len(value) < 1000,
        _WHOLE: number and isinstance(value, int),
        _REAL: number,
        _LIST: isinstance(value, list),
        _TABLE: isinstance(value, dict),
    }
    return kinds[kind]


def _need(table: Any, where: str, **kinds: str) -> None:
    if not isinstance(table, dict):
        raise _WrongError(f"{where} is no object")
    for key, kind in kinds.items():
        optional = kind.startswith("?")
        value = table.get(key)
        if not ((optional and value is None) or _is(value, kind.removeprefix("?"))):
            raise _WrongError(f"{where}.{key} must be {kind.removeprefix('?')}")


def _check(document: Any) -> None:
    _need(document, "it", kind=_TEXT, format=_WHOLE)
    if (document["kind"], document["format"]) != (KIND, FORMAT):
        raise _WrongError(f"it is {one_line(document['kind'], 40)!r}, format {document['format']}")
    _need(document, "it", edgellm=_TEXT, taken=_TEXT, board=_TABLE, model=_TABLE, figures=_LIST, bandwidth=_LIST,
          memory=_TABLE, sustained=_LIST, sensors=_TABLE, cold="?" + _TABLE)  # fmt: skip
    _need(document["board"], "board", name=_TEXT, type=_TEXT, cpu=_TEXT, cores=_WHOLE, gpu="?" + _TEXT)
    _need(document["model"], "model", name=_TEXT, scheme=_TEXT, tier=_TEXT, manifest_sha256=_TEXT, runtime=_TEXT,
          context=_WHOLE, weight_bytes=_WHOLE, arena_bytes=_WHOLE, kv_bytes_per_token=_WHOLE, step_bytes=_WHOLE,
          sliding_window=_WHOLE, gpu_step_bytes="?" + _WHOLE, gpu_kv_bytes_per_token="?" + _WHOLE)  # fmt: skip
    _need(document["memory"], "memory", peak_rss_bytes=_WHOLE, positions=_WHOLE, planned_bytes=_WHOLE)
    for i, figure in enumerate(document["figures"]):
        where = f"figures[{i}]"
        _need(figure, where, kind=_TEXT, tokens=_WHOLE, depth=_WHOLE, threads="?" + _WHOLE, threads_used="?" + _WHOLE,
              values=_LIST)  # fmt: skip
        if figure["kind"] not in UNITS:
            raise _WrongError(f"{where}.kind must be one of {', '.join(UNITS)}")
        if not figure["values"] or not all(_is(value, _REAL) and value > 0 for value in figure["values"]):
            raise _WrongError(f"{where}.values must be numbers above 0")
    for i, it in enumerate(document["bandwidth"]):
        _need(it, f"bandwidth[{i}]", threads=_WHOLE, gb_s=_REAL, low_gb_s=_REAL, high_gb_s=_REAL, loop=_TEXT,
              device="?" + _TEXT, gpu="?" + _TEXT, copy_gb_s="?" + _REAL)  # fmt: skip
        if it["gb_s"] <= 0:
            raise _WrongError(f"bandwidth[{i}].gb_s must be above 0")
    for i, it in enumerate(document["sustained"]):
        _need(it, f"sustained[{i}]", threads="?" + _WHOLE, windows=_LIST)
        for window in it["windows"]:
            _need(window, f"sustained[{i}].windows", at_s=_REAL, s=_REAL, tokens=_WHOLE)
            if window["s"] <= 0:
                raise _WrongError(f"sustained[{i}].windows.s must be above 0")
    if document["cold"] is not None:
        _need(document["cold"], "cold", bytes=_WHOLE, left_bytes=_WHOLE)
    sensors = document["sensors"]
    _need(sensors, "sensors", readings=_LIST, power="?" + _TEXT, slowed_down=_LIST)
    if not all(_is(what, _TEXT) for what in sensors["slowed_down"]):
        raise _WrongError("sensors.slowed_down must be texts")
    for it in sensors["readings"]:
        _need(it, "sensors.readings", at_s=_REAL, clock_hz="?" + _REAL, watts="?" + _REAL)
        if not isinstance(it.get("temp_c"), int | float | None):
            raise _WrongError("sensors.readings.temp_c must be a number")
