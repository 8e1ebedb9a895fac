"""Sketches of a model, from its config.json alone, by the process in which TVM runs; remembered in the cache."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any

from crosscompile.sketch import Sketch
from edgellm import cache
from edgellm.files import write_atomically
from edgellm.precision import Options
from edgellm.worker import run_worker

_MODULE = "edgellm.sketch_worker"

Progress = Callable[[str, int, int], None]


def sketches(
    config: Mapping[str, Any], tiers: Sequence[str], options: Sequence[Options], progress: Progress | None = None
) -> list[dict[str, Sketch]]:
    """For each of `options`, the sketch by tier. Raises CompileError for what is not supported."""
    show = progress or (lambda stage, done, total: None)
    wanted = sorted(set(tiers))
    request = {"config": dict(config), "tiers": wanted, "schemes": [list(astuple(each)) for each in options]}
    key = cache.key_of({**request, "versions": cache.versions(), "sources": cache.sources_digest()})
    file = cache.root() / "sketches" / f"{key}.json"
    answer = None
    with contextlib.suppress(OSError, ValueError):  # not there yet, or damaged: look again
        answer = json.loads(file.read_text(encoding="utf-8"))
    if answer is None:
        answer = run_worker(request, None, show, module=_MODULE)
        write_atomically(file, json.dumps(answer).encode())
    return [{tier: Sketch.from_json(entry) for tier, entry in found.items()} for found in answer["sketches"]]


def instruction_table(progress: Progress | None = None) -> dict[str, Any]:
    """Instructions per product by tier, kind of weights and rows (crosscompile.inner_loop). Takes a few seconds."""
    return run_worker({"count": True}, None, progress or (lambda stage, done, total: None), module=_MODULE)


def label(options: Options) -> str:
    """A scheme for people: "w4a8", "w4a8, head w4a8"."""
    parts = {key: value for key, value in asdict(options).items() if value is not None and key != "scheme"}
    return ", ".join([options.scheme, *(f"{key} {value}" for key, value in parts.items())])
