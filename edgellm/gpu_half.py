"""A bundle for both devices: what a GPU needs, added to a finished bundle for the processor.

Where either of them can run the model, the GPU's half is a plan, its kernels, and the weights that it wants packed
otherwise; what both read alike (norms, biases) is there once. Where they share the model's layers, each has its own.
The runtime becomes one that can load a driver (runtime_c/FORMAT.md).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crosscompile.checkpoint import Checkpoint
from crosscompile.runtime import build_runtime, identity
from crosscompile.target import Target
from edgellm import bundle as bundles
from edgellm import cache
from edgellm.bundle import Bundle
from edgellm.precision import Options, Rounding
from edgellm.worker import Progress, request_of, run_worker

PROGRAM = "edgellm-rt"


def add(
    base: Bundle,
    source: Checkpoint,
    target: Target,
    options: Options,
    rounding: Rounding,
    *,
    times_slower: float | None = None,
    knobs: Mapping[str, Mapping[str, int]],
    fits: Callable[[dict[str, int], int], None] | None = None,
    dump: Path | None = None,
    show: Progress,
    gpu_layers: int | None = None,
) -> Bundle:
    """The bundle for both, from the cache if it is there.

    base: of `source` for the processor of `target`, rounded alike. times_slower: as the board's GPU is known to be than
    its processor; the runtime then takes the GPU only when told to. knobs: what tuning found for the GPU. fits, dump:
    as in edgellm.compile. gpu_layers: as many layers are the GPU's, and base has the others; None: each has all.
    """
    parts = {
        "bundle": base.sha256,
        "gpu": asdict(target.gpu) if target.gpu is not None else None,
        "times_slower": times_slower,
        "gpu_layers": gpu_layers,
        "knobs": knobs,
        "runtime": identity(target),
        "versions": cache.versions(),
        "sources": cache.sources_digest(),
    }
    key = cache.key_of(parts)
    output = cache.root() / "bundles" / key
    with cache.locked(key):
        if dump is None and (found := bundles.intact(output)):
            return found
        with bundles.building(output) as partial:
            bundles.link(base, partial)
            (partial / PROGRAM).unlink()  # a second name of the base's file
            shutil.copyfile(build_runtime(target, cache=cache.root() / "runtime"), partial / PROGRAM)
            (partial / PROGRAM).chmod(0o755)
            request = {
                **request_of(source, target),
                "half": True,
                "output": str(partial.absolute()),
                "dump": str(dump.absolute()) if dump is not None else None,
                "layers": (0, gpu_layers) if gpu_layers is not None else None,
                "knobs": knobs,
                **asdict(options),
                "tensors": rounding.tensors,
                "calibrated": str(rounding.directory) if rounding.directory is not None else None,
            }
            if gpu_layers is None:
                manifest = _manifest(base, run_worker(request, fits, show), times_slower)
            else:

                def both_fit(memory: dict[str, int], context_length: int) -> None:
                    if fits is not None:
                        fits(_sum(base.manifest["memory"], memory), context_length)

                manifest = _split_manifest(base, run_worker(request, both_fit, show), gpu_layers)
            bundles.seal(partial, manifest, lambda done, all_: show("checksums", done, all_))
        return bundles.read(output)


def _manifest(base: Bundle, result: dict[str, Any], times_slower: float | None) -> dict[str, Any]:
    """The base's, for both; `vulkan` says what is the GPU's own."""
    manifest = {key: value for key, value in base.manifest.items() if key not in ("format", "files")}
    manifest["target"] = {**manifest["target"], "device": "both"}
    manifest["vulkan"] = {"memory": result["memory"]}
    if times_slower is not None:
        manifest["vulkan"]["times_slower"] = times_slower
    return manifest


def _split_manifest(base: Bundle, result: dict[str, Any], gpu_layers: int) -> dict[str, Any]:
    """Of the whole model, whose first layers are the GPU's."""
    manifest = {key: value for key, value in base.manifest.items() if key not in ("format", "files")}
    rest, first = manifest["model"], result["model"]
    window = rest["sliding_window"] if rest["sliding_window"] == first["sliding_window"] else 0
    whole = {"n_layers": gpu_layers + rest["n_layers"], "parameters": rest["parameters"] + first["parameters"]}
    manifest["model"] = {**rest, **whole, "sliding_window": window}
    manifest["target"] = {**manifest["target"], "device": "split"}
    manifest["memory"] = _sum(manifest["memory"], result["memory"])
    manifest["vulkan"] = {"memory": result["memory"], "layers": gpu_layers}
    return manifest


def _sum(memory: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    return {key: memory.get(key, 0) + more.get(key, 0) for key in {**memory, **more}}
