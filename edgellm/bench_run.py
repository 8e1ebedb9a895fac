"""Measure a model on a board with its own edgellm-rt: `bench --jsonl` for each number of threads, `bench --bandwidth`,
and the board's sensors beside them. What the board says is checked before anything is computed from it.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from edgellm import __version__, bandwidth
from edgellm.bench_result import FORMAT, GPU, KIND, Figure, is_split
from edgellm.boards import Board
from edgellm.errors import CommandError, RuntimeFailedError, UnsuitableError
from edgellm.runtime_program import InstalledModel, failure, run_json
from edgellm.sensors import Log, Sampler, joules_between, slowed_down
from edgellm.terminal import one_line

Progress = Callable[[str, int, int], None]

DEFAULT_PROMPTS, DEFAULT_DEPTHS = (128, 512), (0, 512)
GENERATE, REPEAT, LIMIT_S = 64, 5, 10
ENERGY_S = 6
"""How long to decode for the energy of a token, where there is a sensor and nobody asked for a sustained run."""

_SILENCE_S = 1800.0  # the first step of a large model on a slow card
_LINE_CAP = 64 * 1024
_MOST_LINES = 200_000


@dataclass(frozen=True)
class Wanted:
    """What to measure. Empty lists: the defaults, as far as they fit the context. limit_s: see LIMIT_S."""

    prompts: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    threads: tuple[int | None, ...] = (None,)
    generate: int | None = None
    repeat: int | None = None
    context: int | None = None
    device: str | None = None
    sustained_s: int = 0
    cold: bool = False
    bandwidth: bool = True
    energy: bool = True


@dataclass
class _Found:
    """What one run of edgellm-rt said, sorted."""

    threads: int | None
    opened: dict[str, Any] = field(default_factory=dict)
    gpu: dict[str, Any] | None = None
    figures: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    windows: list[dict[str, Any]] = field(default_factory=list)
    cold: dict[str, Any] | None = None
    peak_rss_bytes: int = 0

    def add(self, kind: str, tokens: int, depth: int, value: float) -> None:
        self.figures.setdefault((kind, tokens, depth), []).append(value)


class NonsenseError(CommandError):
    """The board said something that edgellm-rt does not say."""


def measure(
    model: InstalledModel, board: Board, wanted: Wanted, progress: Progress, sensors_root: str = ""
) -> dict[str, Any]:
    """The document of edgellm.bench_result. Raises RuntimeFailedError, UnsuitableError, CommandError or LinkError."""
    wanted = _fitting(model, wanted)
    with Sampler(model.remote, root=sensors_root) as sampler:
        if sampler.log.power and wanted.energy and not wanted.sustained_s:
            wanted = dataclasses.replace(wanted, sustained_s=ENERGY_S)
        bar = _Bar(wanted, progress)
        found = []
        for i, threads in enumerate(wanted.threads):
            found.append(_run(model, wanted, threads, i == 0 and wanted.cold, sampler, bar))
        rates = _bandwidth(model, found, bar, sampler) if wanted.bandwidth else []
        sampler.collect(2.0)
    return _document(model, board, found, rates, sampler.log)


def _fitting(model: InstalledModel, wanted: Wanted) -> Wanted:
    """Default lengths as far as the model's context has room; what was asked for stays, and edgellm-rt judges it."""
    if wanted.prompts and wanted.depths:
        return wanted
    manifest = run_json(model.remote, model.argv("info"), "edgellm-rt info").get("manifest")
    about = manifest.get("model") if isinstance(manifest, dict) else None
    longest = about.get("context_length") if isinstance(about, dict) else None
    if not isinstance(longest, int) or longest < 1:
        raise NonsenseError(
            f"{model.remote.name}: edgellm-rt info: model.context_length is missing; deploy the model again"
        )
    context = min(longest, wanted.context or 4096)
    generate = wanted.generate or min(GENERATE, max(context // 2, 1))
    prompts = [n for n in DEFAULT_PROMPTS if n < context] or [max(context - 1, 1)]
    depths = [n for n in DEFAULT_DEPTHS if n + generate < context] or [0]
    return dataclasses.replace(wanted, prompts=wanted.prompts or tuple(prompts), depths=wanted.depths or tuple(depths))


class _Bar:
    """Turns lines into progress: one unit per sample, and one per second of a sustained run."""

    def __init__(self, wanted: Wanted, progress: Progress) -> None:
        repeat = wanted.repeat or REPEAT
        starts = min(repeat, 3) + wanted.cold
        each = starts + repeat * (len(wanted.prompts) + len(wanted.depths)) + wanted.sustained_s
        self._total = each * len(wanted.threads) + (len(wanted.threads) if wanted.bandwidth else 0)
        self._progress, self._sustained_s, self._done = progress, wanted.sustained_s, 0.0
        self._sustained_done = 0.0

    def step(self, what: str, units: float = 1.0) -> None:
        self._done += units
        self._progress(what, round(self._done), max(self._total, round(self._done)))

    def sustained(self, seconds: float, tok_s: float) -> None:
        self._sustained_done += seconds
        left = max(0, round(self._sustained_s - self._sustained_done % max(self._sustained_s, 1)))
        self.step(f"decoding: {tok_s:.1f} tok/s, {left // 60}:{left % 60:02d} left", seconds)


def _run(model: InstalledModel, wanted: Wanted, threads: int | None, cold: bool, sampler: Sampler, bar: _Bar) -> _Found:
    options = ["--jsonl", "--prompt", ",".join(map(str, wanted.prompts)), "--depth", ",".join(map(str, wanted.depths))]
    for name, value in (
        ("generate", wanted.generate),
        ("repeat", wanted.repeat or REPEAT),
        ("limit", None if wanted.repeat else LIMIT_S),
        ("context", wanted.context),
        ("threads", threads),
        ("device", wanted.device),
        ("sustained", wanted.sustained_s or None),
    ):
        if value is not None:
            options += [f"--{name}", str(value)]
    if cold:
        options.append("--cold")
    found = _Found(threads)
    ended = False
    with model.remote.start(model.argv("bench", *options), silence_s=_SILENCE_S) as process:
        process.close_input()
        bar.step("opening the model", 0)
        for line in _lines(process.read, model.remote.name):
            sampler.collect()
            ended = _take(_message(line, model.remote.name), found, bar, model.remote.name) or ended
        status = process.wait()
        if status != 0:
            raise _explained(model, failure(model.remote, "edgellm-rt bench", status, process.errors()))
    if not ended or not found.opened:
        raise NonsenseError(f"{model.remote.name}: edgellm-rt bench ended without a result; run it again")
    return found


def _explained(model: InstalledModel, error: Exception) -> Exception:
    if isinstance(error, RuntimeFailedError) and error.name == "USAGE" and "has no option" in str(error):
        return _older(model)
    return error


def _older(model: InstalledModel) -> UnsuitableError:
    return UnsuitableError(
        f"{model.remote.name}: the edgellm-rt that was deployed with {model.name} is older than this edgellm and "
        "does not measure like this; deploy the model again"
    )


def _lines(read: Callable[[int], bytes], name: str) -> Iterator[bytes]:
    """Lines of bounded length and number."""
    buffer, n_lines = b"", 0
    while piece := read(65536):
        *lines, buffer = (buffer + piece).split(b"\n")
        n_lines += len(lines)
        if len(buffer) > _LINE_CAP or n_lines > _MOST_LINES or any(len(line) > _LINE_CAP for line in lines):
            raise NonsenseError(f"{name}: edgellm-rt bench says too much; deploy the model again")
        yield from lines
    if buffer.strip():
        yield buffer


def _message(line: bytes, name: str) -> dict[str, Any]:
    text = line.decode("utf-8", "replace")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise NonsenseError(f"{name}: edgellm-rt bench said something unexpected: {one_line(text, 120)}")
    return message


def _take(message: dict[str, Any], found: _Found, bar: _Bar, name: str) -> bool:
    """Puts a message where it belongs; True for the last one."""
    kind = message["type"]

    def real(key: str) -> float:
        value = message.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
            raise NonsenseError(
                f"{name}: edgellm-rt bench: {one_line(kind, 40)}.{key} is {one_line(str(value), 40)}, no number"
            )
        return float(value)

    def above(key: str) -> float:
        if (value := real(key)) <= 0:
            raise NonsenseError(
                f"{name}: edgellm-rt bench: {one_line(kind, 40)}.{key} is {value:g}; it must be above 0"
            )
        return value

    def whole(key: str) -> int:
        if (value := real(key)) != int(value):
            raise NonsenseError(f"{name}: edgellm-rt bench: {one_line(kind, 40)}.{key} is {value:g}, no whole number")
        return int(value)

    if kind == "open":
        numbers = ("context", "cores", "weight_bytes", "arena_bytes", "kv_bytes_per_token", "step_bytes",
                   "sliding_window", "generate")  # fmt: skip
        texts = {key: message.get(key) for key in ("name", "scheme", "tier", "manifest_sha256", "runtime")}
        if not all(isinstance(text, str) for text in texts.values()):
            raise NonsenseError(f"{name}: edgellm-rt bench: open lacks one of {', '.join(texts)}")
        found.opened = {key: one_line(str(text), 100) for key, text in texts.items()} | {k: whole(k) for k in numbers}
        gpu = message.get("gpu")
        found.gpu = _gpu(gpu, name) if isinstance(gpu, dict) else None
    elif kind == "cold":
        found.cold = {"bytes": whole("bytes"), "left_bytes": whole("left_bytes")}
    elif kind == "start":
        prefix = "cold_" if message.get("cold") is True else ""
        tokens = whole("prompt")
        found.add(f"{prefix}load", 0, 0, above("load_ms"))
        found.add(f"{prefix}start", tokens, 0, above("first_token_ms"))
        bar.step("opening the model")
    elif kind == "prefill":
        n = whole("prompt")
        found.add("prefill", n, 0, n * 1e3 / above("ms"))
        found.add("first_token", n, 0, above("first_token_ms"))
        found.used["prefill"] = found.used["first_token"] = whole("threads")
        bar.step(f"prefill {n}")
    elif kind == "decode":
        depth, n = whole("depth"), whole("tokens")
        found.add("decode", n, depth, n * 1e3 / above("ms"))
        found.used["decode"] = whole("threads")
        bar.step(f"decode at {depth}")
    elif kind == "sustained":
        window = {"at_s": real("at_s"), "s": above("s"), "tokens": whole("tokens"), "threads": whole("threads")}
        found.windows.append(window)
        bar.sustained(window["s"], window["tokens"] / window["s"])
    elif kind == "end":
        found.peak_rss_bytes = whole("peak_rss_bytes")
        return True
    return False  # "busy", and whatever a later runtime may add


def _gpu(said: dict[str, Any], name: str) -> dict[str, Any]:
    """Its name, and what it reads for a token: None where an older runtime does not say."""
    about: dict[str, Any] = {"name": one_line(str(said.get("name")), 100)}
    for key in ("step_bytes", "kv_bytes_per_token"):
        value = about[key] = said.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise NonsenseError(
                f"{name}: edgellm-rt bench: open.gpu.{key} is {one_line(str(value), 40)}, no whole number"
            )
    return about


def _bandwidth(model: InstalledModel, found: list[_Found], bar: _Bar, sampler: Sampler) -> list[dict[str, Any]]:
    """The memory's that decoding reads, as the document has it."""
    gpu = found[0].gpu
    rates: list[dict[str, Any]] = []
    if gpu is not None:
        rates.append(_of_gpu(model, bar, sampler))
    if gpu is None or is_split(found[0].opened["step_bytes"], gpu["step_bytes"]):
        rates += [dataclasses.asdict(rate) for rate in _of_processor(model, found, bar, sampler)]
    return rates


def _of_gpu(model: InstalledModel, bar: _Bar, sampler: Sampler) -> dict[str, Any]:
    what = "edgellm-rt bench --bandwidth --device vulkan"
    bar.step("the GPU's memory bandwidth", 0)
    answer = run_json(model.remote, model.argv("bench", "--bandwidth", "--device", "vulkan"), what, _SILENCE_S)
    try:
        rate = bandwidth.parse_gpu(answer)
    except bandwidth.OlderError:
        raise _older(model) from None
    except ValueError:
        raise NonsenseError(f"{model.remote.name}: {what} gave no bandwidth") from None
    sampler.collect()
    bar.step("the GPU's memory bandwidth")
    return {"device": GPU, "threads": 0, **dataclasses.asdict(rate)}


def _of_processor(model: InstalledModel, found: list[_Found], bar: _Bar, sampler: Sampler) -> list[bandwidth.Bandwidth]:
    """With every number of threads that decoding ran with."""
    rates = []
    for n in sorted({each.used["decode"] for each in found if each.used.get("decode", 0) > 0}):
        bar.step(f"memory bandwidth, {n} threads", 0)
        argv = model.argv("bench", "--bandwidth", "--threads", str(n))
        answer = run_json(model.remote, argv, "edgellm-rt bench --bandwidth", _SILENCE_S)
        try:
            rates.append(bandwidth.parse(answer))
        except ValueError:
            raise NonsenseError(f"{model.remote.name}: edgellm-rt bench --bandwidth gave no bandwidth") from None
        sampler.collect()
        bar.step("memory bandwidth")
    return rates


def _document(
    model: InstalledModel, board: Board, found: list[_Found], rates: list[dict[str, Any]], log: Log
) -> dict[str, Any]:
    opened = found[0].opened
    figures = []
    for each in found:
        for (kind, tokens, depth), values in each.figures.items():
            figures.append(Figure(kind, tuple(values), tokens, depth, each.threads, each.used.get(kind)))
        if energy := _energy(each, log):
            figures.append(
                Figure("energy", tuple(energy), 0, _first_depth(each), each.threads, each.used.get("decode"))
            )
    used = [max(t + 1, d + t + 1 if kind == "decode" else 0) for it in found for kind, t, d in it.figures]
    positions = min(max(used, default=0), int(opened["context"]))
    planned = opened["weight_bytes"] + opened["arena_bytes"] + positions * opened["kv_bytes_per_token"]
    return {
        "kind": KIND,
        "format": FORMAT,
        "edgellm": __version__,
        "taken": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "board": {
            "name": board.label,
            "type": board.id,
            "cpu": board.cpu,
            "cores": opened["cores"],
            "gpu": None if (gpu := found[0].gpu) is None else gpu["name"],
        },
        "model": {
            "installed_as": model.name,
            **{k: v for k, v in opened.items() if k not in ("cores", "generate")},
            "gpu_step_bytes": gpu and gpu["step_bytes"],
            "gpu_kv_bytes_per_token": gpu and gpu["kv_bytes_per_token"],
        },
        "figures": [figure.as_json() for figure in figures],
        "bandwidth": rates,
        "memory": {
            "peak_rss_bytes": max(it.peak_rss_bytes for it in found),
            "planned_bytes": planned,
            "positions": positions,
        },
        "cold": found[0].cold,
        "sustained": [{"threads": it.threads, "windows": it.windows} for it in found if it.windows],
        "sensors": {
            "power": log.power,
            "why_no_power": None if log.power else log.why_no_power(),
            "governor": log.governor,
            "max_clock_hz": log.max_clock_hz,
            "slowed_down": slowed_down(log.readings),
            "readings": [dataclasses.asdict(reading) for reading in log.readings],
        },
    }


def _first_depth(found: _Found) -> int:
    return next((depth for kind, _, depth in found.figures if kind == "decode"), 0)


def _energy(found: _Found, log: Log) -> list[float]:
    """Tokens per joule of each second of the sustained run; nothing without a sensor that covers it."""
    values = []
    for window in found.windows:
        joules = joules_between(log.readings, window["at_s"] - window["s"], window["at_s"])
        if joules is not None and joules > 0 and window["tokens"] > 0:
            values.append(window["tokens"] / joules)
    return values
