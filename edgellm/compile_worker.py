"""The process in which TVM runs: `python -m edgellm.compile_worker`, started by edgellm.compile.

Standard input holds one JSON request. Standard output answers with JSON lines:
{"stage": …, "done": …, "total": …} while working, {"sized": {…}} before kernels are compiled (the least it can be: no
arena, one KV block) and before weights are written, and at the end {"result": {…}} or {"error": type, "text": …}.
LLVM may abort this process; the parent turns that into an error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from crosscompile import calibrated, checkpoint
from crosscompile.checkpoint import Checkpoint
from crosscompile.compiled import CompiledModel, from_json, to_json
from crosscompile.errors import CompileError
from crosscompile.quantize import check_sources, is_shared, weight_bytes, write_weights
from crosscompile.spirv.capabilities import Gpu
from crosscompile.target import Target, gpu_tier, target_of_tier
from edgellm import cache

if TYPE_CHECKING:
    from crosscompile.models.architecture import Scheme

_KERNELS = "kernels"
"""The cache's folder of what was compiled, weights apart."""
_ELSEWHERE = ("checkpoint", "lora", "output", "dump", "half", "calibrated")
"""What a request asks of weights and files: kernels do not depend on it."""


class Channel:
    """JSON lines to the parent, on a descriptor of its own: libraries may print to standard output."""

    def __init__(self) -> None:
        self._stream: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._shown = 0.0

    def send(self, **message: Any) -> None:
        self._stream.write(json.dumps(message) + "\n")

    def progress(self, stage: str, done: int, total: int) -> None:
        """At most twenty times a second, and at the end."""
        now = time.monotonic()
        if done == total or now - self._shown > 0.05:
            self._shown = now
            self.send(stage=stage, done=done, total=total)


def begin() -> Channel:
    """What a worker does first."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort is expected, a core file in the user's folder is not
    sys.modules["torch"] = None  # type: ignore[assignment]  # TVM loads it wherever it is installed, for two seconds
    return Channel()


def target_of(request: dict[str, Any]) -> Target:
    """What a request asks to compile for."""
    if request.get("gpu") is None:
        return target_of_tier(request["tier"], request["os"])
    gpu = Gpu(**{**request["gpu"], "capabilities": tuple(request["gpu"]["capabilities"])})
    return Target(request["arch"], request["os"], gpu_tier(request["arch"])).on_gpu(gpu)


def work(request: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Compiles kernels and writes weights into request["output"]; returns what the manifest needs.

    With "outline" in the request, only counts the bytes of all weights. With "half", what is written is what a bundle
    for the processor lacks to be one for a GPU, too. With "layers", [first, end], it is some layers' share of a bundle
    that is split between the two.
    """
    started = time.monotonic()
    channel.progress("compiling kernels", 0, 0)
    source = checkpoint.load(request["checkpoint"], request.get("lora"))
    if request.get("outline"):
        return _outline(source, request)
    key = _key(source, request)
    found = None if request["dump"] else _kept(key)
    if found is None:
        compiled, scheme = _compile(source, request, channel)
        if not request["dump"]:
            cache.keep(_KERNELS, key, json.dumps({"compiled": to_json(compiled), "scheme": scheme}))
    else:
        compiled, scheme = found
        check_sources(source, compiled.parameters)
    size = weight_bytes(compiled.parameters)
    compiled_at = time.monotonic()
    memory = {**compiled.memory, "weight_bytes": size.n_bytes}
    channel.send(sized={"memory": memory, "context_length": compiled.model["context_length"]})

    output = Path(request["output"])
    half = bool(request.get("half"))
    (output / "weights").mkdir(exist_ok=half)
    weights = write_weights(
        source,
        [each for each in compiled.parameters if request.get("layers") is not None or not (half and is_shared(each))],
        output / "weights",
        lambda done, total: channel.progress("weights", done, total),
        calibrated.read(Path(request["calibrated"])) if request.get("calibrated") else None,
        "vulkan-" if half else "",
    )
    (output / ("kernels.so" if request.get("gpu") is None else "kernels.spv")).write_bytes(compiled.kernels)
    (output / ("plan-vulkan.json" if half else "plan.json")).write_text(
        json.dumps(compiled.plan, separators=(",", ":"))
    )
    return {
        "model": compiled.model,
        "memory": memory,
        "scheme": scheme,
        "statistics": {
            "kernels": len(compiled.plan["kernels"]),
            "kernel_bytes": len(compiled.kernels),
            "kernels_kept": found is not None,
            "bits_per_weight": round(weights.bits_per_weight, 3),
            "parameters": weights.n_parameters,
            "parameters_kept": weights.n_kept,
            "parameters_quantized_again": weights.n_again,
            "parameters_calibrated": weights.n_calibrated,
            "keeping": weights.keeping,
        },
        "seconds": {
            "start": compiled_at - started - sum(compiled.seconds.values()),
            **compiled.seconds,
            "weights": time.monotonic() - compiled_at,
        },
    }


def _key(source: Checkpoint, request: dict[str, Any]) -> str:
    """The name of the kernels that a request asks for: other weights of the same shapes have the same."""
    return cache.key_of(
        {
            "config": source.config,
            "pooling": source.pooling,
            "request": {name: value for name, value in request.items() if name not in _ELSEWHERE},
            "versions": cache.versions(),
            "sources": cache.compiler_digest(),
            "python": list(sys.version_info[:2]),
        }
    )


def _kept(key: str) -> tuple[CompiledModel, dict[str, Any]] | None:
    """(what was compiled before, its scheme)."""
    text = cache.kept(_KERNELS, key)
    if text is None:
        return None
    kept = json.loads(text)
    return from_json(kept["compiled"]), kept["scheme"]


def _scheme(request: dict[str, Any]) -> Scheme:
    """The scheme a request names; loads TVM."""
    from crosscompile.models.architecture import scheme_for

    name, embedding, head, kv = (request[key] for key in ("scheme", "embedding", "head", "kv"))
    return scheme_for(name, embedding, head, kv, request.get("tensors", ()))


def _outline(source: Checkpoint, request: dict[str, Any]) -> dict[str, Any]:
    from crosscompile.program import outline

    return {"weight_bytes": weight_bytes(outline(source.config, target_of(request), _scheme(request))[0]).n_bytes}


def _compile(source: Checkpoint, request: dict[str, Any], channel: Channel) -> tuple[CompiledModel, dict[str, Any]]:
    """(what is compiled now, its scheme)."""
    from crosscompile.program import SHORT_LADDER, SPLIT_LADDER, compile_model, ladder_for, outline

    scheme = _scheme(request)
    target = target_of(request)
    dump = Path(request["dump"]) if request["dump"] else None
    layers = tuple(request["layers"]) if request.get("layers") is not None else None
    ladder = SPLIT_LADDER if layers is not None else ladder_for(target)
    ladder = SHORT_LADDER if request.get("short") else ladder
    parameters, states = outline(source.config, target, scheme, layers)
    check_sources(source, parameters)
    least = {"weight_bytes": weight_bytes(parameters).n_bytes, **states}
    channel.send(sized={"memory": {**least, "arena_bytes": 0}, "context_length": 64})
    compiled = compile_model(
        source.config,
        target,
        scheme,
        dump=dump,
        ladder=ladder,
        tuned=request.get("knobs"),
        pooling=source.pooling,
        layers=layers,
    )
    return compiled, scheme.as_dict()


def main() -> int:
    """Entry point. 0: a result was sent, 1: an error was sent."""
    channel = begin()
    try:
        channel.send(result=work(json.load(sys.stdin), channel))
    except CompileError as error:
        channel.send(error=type(error).__name__, text=str(error))
        return 1
    except OSError as error:
        channel.send(error="OSError", text=f"{error.filename or 'output'}: {error.strerror}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
