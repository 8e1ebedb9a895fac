"""A launch that went wrong as a directory that shows it again, alone: kernel, inputs, what was expected.

replay.json                the call: symbol, groups, scalars, arguments and their files
kernels.so, edgellm-rt     of the machine where it went wrong
<number>-<name>.npy        what the kernel reads; <number>-expected.npy: what it must write
README.md                  what this is and how it is run
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.kinds import KINDS
from edgellm.errors import CommandError, UsageError
from edgellm.files import write_atomically
from edgellm.launches import Launch, Whole
from edgellm.profile_result import fetch
from edgellm.remote import FileToSend, Remote
from edgellm.runtime_program import PROGRAM, failure
from edgellm.stepwise import Finding, blocks_touched
from edgellm.terminal import one_line

DESCRIPTION = "replay.json"
_REPLAY_S = 600.0
_FAILED = "KERNEL_FAILED"


def write(finding: Finding, directory: Path) -> None:
    """Writes the reproducer, with kernels and program from the machine. UsageError if there is something else there."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        if not (directory / DESCRIPTION).is_file():
            raise UsageError(f"{directory} exists and is no reproducer; choose another directory with -o")
        for file in directory.iterdir():
            file.unlink()
    directory.mkdir(parents=True, exist_ok=True)
    machine, launch, whole = finding.machine, finding.launch, finding.whole
    for name in ("kernels.so", PROGRAM):
        data = fetch(machine.model.remote, f"{machine.model.path}/{name}")
        write_atomically(directory / name, data, 0o755 if name == PROGRAM else 0o644)
    arguments = []
    for place, argument in enumerate(launch.step.arguments):
        entry: dict[str, Any] = {"access": argument.access, "what": _label(finding, place)}
        if place in whole.before:
            entry["before"] = f"{place}-{_file_name(finding, place)}.npy"
            data = whole.before[place]
            _save(directory / entry["before"], np.frombuffer(data, _dtype(finding, place)))
            entry["bytes"] = len(data)
        if place in whole.after:
            entry["expected"] = f"{place}-expected.npy"
            entry["bytes"] = len(whole.after[place])
            _save(directory / entry["expected"], _expected(launch, whole, place, finding.expected[place]))
        arguments.append(entry)
    document = {
        "kernels": "kernels.so",
        "symbol": launch.step.kernel,
        "groups": whole.groups,
        "grain": whole.grain,
        "scalars": list(whole.scalars),
        "tolerance": finding.tolerance,
        "arguments": arguments,
        "step": launch.name,
        "machine": {"tier": machine.tier.name, "arch": machine.tier.arch},
        "difference": str(finding.difference),
        "cause": finding.cause,
        "detail": finding.detail,
    }
    write_atomically(directory / DESCRIPTION, (json.dumps(document, indent=1) + "\n").encode())
    write_atomically(directory / "README.md", _readme(finding).encode())


def _expected(launch: Launch, whole: Whole, place: int, expected: np.ndarray) -> np.ndarray:
    """The whole buffer as it should be: padding rows, and blocks that the launch leaves alone, stay as they are."""
    wanted = np.ascontiguousarray(expected).reshape(-1)
    if launch.step.arguments[place].bind != "s":
        rows: np.ndarray = np.frombuffer(whole.after[place], wanted.dtype).copy()
        rows[: wanted.size] = wanted
        return rows
    buffer: np.ndarray = np.frombuffer(whole.before[place], wanted.dtype).copy()
    numbers = blocks_touched(launch, whole)
    size = wanted.size // len(numbers)
    for i, number in enumerate(numbers):
        buffer[number * size : (number + 1) * size] = wanted[i * size : (i + 1) * size]
    return buffer


def _label(finding: Finding, place: int) -> str:
    argument = finding.launch.step.arguments[place]
    return finding.whole.names[place] or {"a": "activations", "s": "KV cache"}.get(argument.bind, "")


def _file_name(finding: Finding, place: int) -> str:
    kept = (c if c.isalnum() or c in "._-" else "_" for c in _label(finding, place).replace(" ", "_"))
    return "".join(kept)[:80] or "input"


def _dtype(finding: Finding, place: int) -> str:
    """How an input is stored: what kind of numbers they are, where that is plain."""
    argument, name = finding.launch.step.arguments[place], finding.whole.names[place]
    n_bytes = len(finding.whole.before[place])
    kind = "u1"
    if argument.bind == "i":
        kind = "<i4"
    elif argument.bind == "s":
        kind = {"f32": "<f4", "f16": "<f2", "i8": "u1"}[finding.machine.scheme.kv]
    elif name.endswith(".scale"):
        kind = "<f2"
    elif name.endswith(".zero"):
        kind = "<i4"
    elif argument.bind == "a" and not _is_bytes(finding, place):
        kind = "<f4"
    return kind if n_bytes % np.dtype(kind).itemsize == 0 else "u1"


def _is_bytes(finding: Finding, place: int) -> bool:
    """The quantized rows are the first argument of a linear layer that has scales."""
    return place == 0 and any(f"linear_{kind}" in finding.launch.step.operation for kind in KINDS)


def _save(path: Path, array: np.ndarray) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    write_atomically(path, stream.getvalue())


def _readme(finding: Finding) -> str:
    tier = finding.machine.tier
    return f"""\
# {finding.launch.name}

On a machine of tier {tier.name} ({tier.arch}) this step wrote something else than it should:
{finding.difference}.

Cause: {finding.cause}; {finding.detail}.

Show it again, alone, on such a machine (with an emulator in front of it elsewhere):

    ./{PROGRAM} replay .

or from the desk: `edgellm compare --replay DIR --board BOARD`. The exit code is 27 (KERNEL_FAILED) as long as what the
kernel writes differs, and 0 once it does not. `replay.json` says how the kernel is called; inputs and expected outputs
are .npy files.
"""


def replay(remote: Remote, directory: Path, options: Sequence[str] = ()) -> str | None:
    """Runs a reproducer on a machine: None if the kernel is right there, else what is wrong.

    Raises UsageError if the directory is none, RemoteError or RuntimeFailedError if it does not run.
    """
    if not (directory / DESCRIPTION).is_file():
        raise UsageError(f"{directory} is no reproducer: it has no {DESCRIPTION}; `edgellm compare` writes one")
    files = sorted(file for file in directory.iterdir() if file.is_file())
    folder = remote.script('mktemp -d "${TMPDIR:-/tmp}/edgellm-replay.XXXXXX"').text.strip()
    if not folder.startswith("/") or "\n" in folder:
        raise CommandError(f"{remote.name}: mktemp said something unexpected: {one_line(folder, 80)}")
    try:
        remote.put_all([FileToSend(file, file.name, file.name == PROGRAM) for file in files], folder)
        result = remote.run([f"{folder}/{PROGRAM}", "replay", folder, *options], silence_s=_REPLAY_S)
    finally:
        remote.script('rm -rf "$1"', folder)
    if result.status == 0:
        return None
    error = failure(remote, f"{PROGRAM} replay", result.status, result.stderr)
    if getattr(error, "name", None) == _FAILED:
        return one_line(result.stderr.partition(f"{_FAILED}: ")[2])
    raise error


def default_directory(finding: Finding) -> Path:
    """reproducer-<machine>-step-<number>, in the current folder."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in finding.machine.name.split(" ")[0])
    return Path(os.curdir) / f"reproducer-{name}-step-{finding.launch.number}"
