"""The compiling process, in which TVM runs: started for one request, ended with it; its errors are raised here.

It is `python -m edgellm.compile_worker`, or another module that talks as it does.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import crosscompile.errors
from crosscompile.checkpoint import Checkpoint
from crosscompile.errors import CodegenError, CompileError
from crosscompile.target import Target
from edgellm.errors import ModelError

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, what is done and the total in bytes (total 0: not measured)."""


class Processes:
    """The compiling processes of a job: once stopped, none is left and none starts."""

    def __init__(self) -> None:
        self._all: list[subprocess.Popen[str]] = []
        self._stopped = False

    def add(self, process: subprocess.Popen[str]) -> None:
        self._all.append(process)
        if self._stopped:
            process.kill()

    def stop(self) -> None:
        self._stopped = True
        for process in self._all:
            process.kill()


def request_of(source: Checkpoint, target: Target) -> dict[str, Any]:
    """What every request says of the model and of what it is compiled for."""
    return {
        "checkpoint": str(source.path.absolute()),
        "lora": str(source.adapter.absolute()) if source.adapter is not None else None,
        "tier": target.tier.name,
        "arch": target.arch,
        "os": target.os,
        "gpu": asdict(target.gpu) if target.gpu is not None else None,
    }


@contextlib.contextmanager
def _process(module: str, stderr: Any) -> Iterator[subprocess.Popen[str]]:
    """The worker; it never outlives the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=Path(__file__).parent.parent,  # `-m` looks here first: the user's folder must not lend it modules
        text=True,
        encoding="utf-8",
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # it died with the request half read
                    pipe.close()


def run_worker(
    request: dict[str, Any],
    fits: Callable[[dict[str, int], int], None] | None,
    show: Progress,
    started: Callable[[subprocess.Popen[str]], None] | None = None,
    module: str = "edgellm.compile_worker",
) -> dict[str, Any]:
    """Runs one request in the compiling process. Its errors are raised here; its death is a CodegenError.

    request: as `module` says, paths absolute. started: gets the process, so that another can end it.
    """
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr,
        _process(module, stderr) as process,
    ):
        if started is not None:
            started(process)
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: the exit code says more
            process.stdin.write(json.dumps(request))
            process.stdin.close()
        for line in process.stdout:
            message = json.loads(line)
            if "result" in message:
                result: dict[str, Any] = message["result"]
                return result
            if "error" in message:
                raise error_of(message["error"], message["text"])
            if "sized" in message:
                if fits is not None:
                    fits(message["sized"]["memory"], message["sized"]["context_length"])
            else:
                show(message["stage"], message["done"], message["total"])
        code = process.wait()
        stderr.seek(0)
        lines = [line.strip() for line in stderr.read().splitlines() if line.strip()]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    last = next((line for line in lines if "LLVM ERROR" in line), lines[-1] if lines else "it said nothing")
    if code == -signal.SIGKILL and not lines:
        last = "this machine probably ran out of memory; close other programs"
    what = f"tier {request['tier']}" if "tier" in request else "a sketch"
    raise CodegenError(
        f"the compiler process ended with {how} for {what}: {last}; "
        f"try another --scheme, and report this with the model's config.json"
    )


def error_of(kind: str, text: str) -> Exception:
    """The worker's error as an exception of the same type."""
    found = getattr(crosscompile.errors, kind, None)
    if isinstance(found, type) and issubclass(found, CompileError):
        return found(text)
    return ModelError(text)
