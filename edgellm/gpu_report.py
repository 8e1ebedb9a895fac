"""A step that a GPU computed wrongly as a directory that can be sent to whoever makes its driver.

step.json                   the dispatch: kernel, workgroups, push constants, and for each binding its files
kernel.spv                  the kernel's SPIR-V, entry point "main"
<binding>-before.npy        what lay in a buffer before
<binding>-expected.npy      what lavapipe leaves there; <binding>-written.npy: what the GPU left there
README.md                   what this is, and the devices
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import UsageError
from edgellm.files import write_atomically
from edgellm.gpu_compare import Evidence, GpuBundle, Verdict, Wrong
from edgellm.gpu_values import Module

DESCRIPTION = "step.json"


def write(reference: GpuBundle, verdict: Verdict, wrong: Wrong, evidence: Evidence, directory: Path) -> None:
    """Writes the directory. UsageError if there is something else there."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        if not (directory / DESCRIPTION).is_file():
            raise UsageError(f"{directory} exists and is no report of a GPU; choose another directory with -o")
        for file in directory.iterdir():
            file.unlink()
    directory.mkdir(parents=True, exist_ok=True)
    step, module = wrong.launch.step, reference.modules[wrong.launch.step.kernel]
    write_atomically(directory / "kernel.spv", module.code)
    bindings = []
    for place, argument in enumerate(step.arguments):
        entry: dict[str, Any] = {"access": argument.access, "element": module.elements.get(place, "")}
        if name := evidence.found.names[place]:
            entry["what"] = name
        for key, buffers, written in (
            ("before", evidence.found.before, False),
            ("expected", evidence.expected.after, True),
            ("written", evidence.found.after, True),
        ):
            if place in buffers:
                entry[key] = f"{place}-{key}.npy"
                _save(directory / entry[key], buffers[place], module, place, written)
        bindings.append(entry)
    document = {
        "kernel": step.kernel,
        "workgroups": reference.grids.get(step.kernel, []),
        "push_constants": list(evidence.found.scalars),
        "bindings": bindings,
        "step": wrong.launch.name,
        "gpu": verdict.gpu,
        "reference": verdict.reference,
        "difference": str(wrong.difference),
        "argument": wrong.difference.argument,
        "cause": evidence.cause,
        "detail": evidence.detail,
    }
    write_atomically(directory / DESCRIPTION, (json.dumps(document, indent=1) + "\n").encode())
    write_atomically(directory / "README.md", _readme(verdict, wrong, evidence).encode())


def _save(path: Path, data: bytes, module: Module, place: int, written: bool) -> None:
    stream = io.BytesIO()
    array: np.ndarray = np.frombuffer(data, module.kind(place, len(data), written))
    np.lib.format.write_array(stream, array, allow_pickle=False)
    write_atomically(path, stream.getvalue())


def _readme(verdict: Verdict, wrong: Wrong, evidence: Evidence) -> str:
    return f"""\
# {wrong.launch.step.kernel}

A compute shader for Vulkan that writes something else on

    {verdict.gpu}

than on

    {verdict.reference}

from the same buffers. Binding {wrong.difference.argument}: {wrong.difference}.

Cause, as far as edgellm can say: {evidence.cause}; {evidence.detail}.

`kernel.spv` is the shader (`spirv-dis`, `spirv-val --target-env vulkan1.1`), with the entry point "main"; all buffers
are storage buffers of set 0. `{DESCRIPTION}` says how many workgroups are dispatched, the push constants (int32), and
for each binding what lay there before (`before`), what {verdict.reference} leaves there (`expected`) and what the GPU
left (`written`). The files are NumPy's; a buffer of uint32 that the shader writes holds four int8 a word. A buffer
without `before` is only written; what it held does not matter.
"""


def default_directory(gpu: GpuBundle, wrong: Wrong) -> Path:
    """reproducer-<machine>-step-<number>, in the current folder."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in gpu.name.split(" ")[0])
    return Path(os.curdir) / f"reproducer-{name}-step-{wrong.launch.number}"
