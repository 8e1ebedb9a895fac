"""A bundle for both: what a GPU needs, added to a finished bundle for the processor.

The GPU's half is a plan, its kernels, and the weights that it wants packed otherwise; what both read alike (norms,
biases) is there once. The runtime becomes one that can load a driver (runtime_c/FORMAT.md).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crosscompile.checkpoint import Checkpoint
from crosscompile.runtime import build_runtime
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
) -> Bundle:
    """The bundle for both, from the cache if it is there.

    base: of `source` for the processor of `target`, rounded alike. times_slower: as the board's GPU is known to be than
    its processor; the runtime then takes the GPU only when told to. knobs: what tuning found for the GPU. fits, dump:
    as in edgellm.compile.
    """
    parts = {
        "bundle": base.sha256,
        "gpu": asdict(target.gpu) if target.gpu is not None else None,
        "times_slower": times_slower,
        "knobs": knobs,
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
                "knobs": knobs,
                **asdict(options),
                "tensors": rounding.tensors,
                "calibrated": str(rounding.directory) if rounding.directory is not None else None,
            }
            result = run_worker(request, fits, show)
            bundles.seal(
                partial, _manifest(base, result, times_slower), lambda done, all_: show("checksums", done, all_)
            )
        return bundles.read(output)


def _manifest(base: Bundle, result: dict[str, Any], times_slower: float | None) -> dict[str, Any]:
    """The base's, for both; `vulkan` says what is the GPU's own."""
    manifest = {key: value for key, value in base.manifest.items() if key not in ("format", "files")}
    manifest["target"] = {**manifest["target"], "device": "both"}
    manifest["vulkan"] = {"memory": result["memory"]}
    if times_slower is not None:
        manifest["vulkan"]["times_slower"] = times_slower
    return manifest
