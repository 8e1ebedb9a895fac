"""The process that builds and measures for tuning: `python -m edgellm.tune_worker`, started by edgellm.tune_builder.

One JSON object per line each way, {"do": what, …} answered with {"result": …} or {"error": type, "text": …}:

    open     checkpoint, scheme, embedding, head, kv, tier, arch, os, gpu, rows: [layer, …]
    build    layer, knobs: [{…}, …], copies, output: functions and arguments, or, for a GPU, indices and the plan; the
             library, or the modules, are written to `output`
    connect  port, key, timeout_s: what the agent says the board is
    load     path, arguments: [[dtype, elements], …], or for a GPU path and plan: what the agent says the GPU is
    measure  function, repeat, min_repeat_ms: seconds, and the board's state before and after
    drop     forgets the connection

LLVM may abort this process. TVM's RPC client lives here, too, and not beside the forwarding (edgellm.rpc).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from crosscompile import checkpoint
from crosscompile.errors import CompileError
from crosscompile.target import Target
from edgellm.compile_worker import begin, target_of
from edgellm.errors import EdgeError, RemoteError


class Builder:
    """A model's linear layers and their candidates."""

    def __init__(self, request: dict[str, Any]) -> None:
        from crosscompile.program import linear_layers_of

        config, self._target, scheme, ladder = opened(request)
        layers = linear_layers_of(config, self._target, scheme, ladder)
        self._layers = {layer.work.key: layer for layer in layers if layer.calls > 0}

    def layers(self) -> list[dict[str, Any]]:
        """What there is to tune."""
        from crosscompile.kernels.linear import candidates
        from crosscompile.packing import Packing
        from crosscompile.shim import arguments_of

        listed = []
        for key, layer in self._layers.items():
            work = layer.work
            n_groups = work.rows_padded // Packing.parse(work.packing).rows
            knobs = candidates(self._target.tier, work.packing, work.n, n_groups)
            arguments = arguments_of(layer.function)
            listed.append(
                {
                    "key": key,
                    "n": work.n,
                    "calls": layer.calls,
                    "weight_bytes": sum(a.n_bytes for a in arguments if a.rotates),
                    "candidates": [dataclasses.asdict(each) for each in knobs],
                }
            )
        return listed

    def build(self, request: dict[str, Any]) -> dict[str, Any]:
        """Writes the library of a layer with several schedules."""
        from crosscompile import shim
        from crosscompile.kernels.linear import LinearKnobs, schedule

        layer = self._layers[request["layer"]]
        kernels = {
            f"k{i}": schedule(layer.function, self._target.tier, layer.work.packing, LinearKnobs(**knobs))
            for i, knobs in enumerate(request["knobs"])
        }
        made = shim.build(kernels, self._target, request["copies"])
        Path(request["output"]).write_bytes(made.library)
        return {
            "functions": [made.functions[name] for name in kernels],
            "arguments": [[a.dtype, a.elements, a.rotates] for a in made.arguments],
        }


class GpuBuilder:
    """A model's kernels for a GPU and their candidates."""

    def __init__(self, request: dict[str, Any]) -> None:
        from crosscompile.gpu.tunables import tunables_of

        config, self._target, scheme, ladder = opened(request)
        self._tunables = {each.key: each for each in tunables_of(config, self._target, scheme, ladder)}

    def layers(self) -> list[dict[str, Any]]:
        """What there is to tune."""
        return [
            {"key": key, "n": each.n, "calls": each.calls, "weight_bytes": each.n_bytes, "candidates": each.candidates}
            for key, each in self._tunables.items()
        ]

    def build(self, request: dict[str, Any]) -> dict[str, Any]:
        """Writes the modules of a kernel with several schedules."""
        from crosscompile.gpu.trials import build_trial

        tunable = self._tunables[request["layer"]]
        made = build_trial(tunable, request["knobs"], self._target, request["copies"])
        Path(request["output"]).write_bytes(made.modules)
        plan = {"plan": json.dumps(made.plan), "position": tunable.position, "n_calls": made.n_calls}
        return {"functions": [str(i + 1) for i in range(len(request["knobs"]))], "arguments": [], "gpu": plan}


def opened(request: dict[str, Any]) -> tuple[Any, Target, Any, Any]:
    """(config, target, scheme, ladder) of a request to open."""
    from crosscompile.models.architecture import scheme_for  # from here on TVM is loaded
    from crosscompile.program import Ladder, ladder_for

    scheme = scheme_for(request["scheme"], request["embedding"], request["head"], request["kv"])
    target = target_of(request)
    body = tuple(n for n in ladder_for(target).body if n in request["rows"]) or (1,)
    config = checkpoint.load(request["checkpoint"]).config
    return config, target, scheme, Ladder(body, (1,))  # prompts need the logits of one row


class Worker:
    """What requests work on."""

    def __init__(self) -> None:
        self._builder: Builder | GpuBuilder | None = None
        self._session: Any = None

    def do(self, request: dict[str, Any]) -> Any:
        what = request["do"]
        if what == "open":
            self._builder = Builder(request) if request["gpu"] is None else GpuBuilder(request)
            return self._builder.layers()
        if what == "build":
            assert self._builder is not None
            return self._builder.build(request)
        if what == "connect":
            from edgellm.rpc_client import Session

            self._session = Session(request["port"], request["key"], request["timeout_s"])
            return self._session.info
        if what == "drop":
            self._session = None
            return None
        if self._session is None:
            raise RemoteError("there is no connection to the agent")
        if what == "load" and "gpu" in request:
            return self._session.load_plan(Path(request["path"]).read_bytes(), **request["gpu"])
        if what == "load":
            return self._session.load(Path(request["path"]).read_bytes(), request["arguments"])
        return self._session.measure(request["function"], request["repeat"], request["min_repeat_ms"])


def main() -> int:
    channel = begin()
    worker = Worker()
    for line in sys.stdin:
        try:
            channel.send(result=worker.do(json.loads(line)))
        except (CompileError, EdgeError) as error:
            channel.send(error=type(error).__name__, text=str(error))
        except OSError as error:
            channel.send(error="OSError", text=f"{error.filename or 'output'}: {error.strerror}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
