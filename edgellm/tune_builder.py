"""Builds the libraries that tuning measures, and measures them, in a process that may die: LLVM aborts on occasion."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crosscompile.errors import CodegenError
from crosscompile.target import Target
from edgellm.errors import ModelError, RemoteError
from edgellm.precision import Options
from edgellm.worker import error_of

Knobs = dict[str, int]

_SILENCE_S = 660.0  # longer than a session lasts


@dataclass(frozen=True)
class Layer:
    """A kernel to tune. calls: per pass over n rows; weight_bytes: of one call; candidates: the default first."""

    key: str
    n: int
    calls: int
    weight_bytes: int
    candidates: tuple[Knobs, ...]


@dataclass(frozen=True)
class Argument:
    """A tensor of a measured function; elements: of one copy."""

    dtype: str
    elements: int
    rotates: bool


@dataclass(frozen=True)
class Library:
    """A library and the function for each knobs; None where these cannot be compiled.

    gpu: of modules for a GPU, what edgellm.rpc_client.Session.load_plan takes besides them.
    """

    data: bytes
    functions: tuple[str | None, ...]
    arguments: tuple[Argument, ...]
    gpu: dict[str, Any] | None = None


class Builder:
    """The building process; use it as a context manager. layers: what the model has."""

    def __init__(self, checkpoint: Path, options: Options, target: Target, rows: list[int]) -> None:
        self._request = {
            "do": "open",
            "checkpoint": str(checkpoint.absolute()),
            "scheme": options.scheme,
            "embedding": options.embedding,
            "head": options.head,
            "kv": options.kv,
            "tier": target.tier.name,
            "arch": target.arch,
            "os": target.os,
            "gpu": asdict(target.gpu) if target.gpu is not None else None,
            "rows": rows,
        }
        self._tier = target.tier.name
        self._process: subprocess.Popen[str] | None = None
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # closed in __exit__
        self.layers = tuple(Layer(**{**each, "candidates": tuple(each["candidates"])}) for each in self._start())

    def build(self, layer: Layer, knobs: list[Knobs], copies: int) -> Library:
        """One library for all knobs; if the process dies of it, without those that kill it. Raises CodegenError."""
        try:
            return self._build(layer, knobs, copies)
        except CodegenError:
            if len(knobs) == 1:
                raise
        working = [each for each in knobs if self._compiles(layer, each, copies)]
        if not working:
            raise CodegenError(f"{layer.key}: no schedule compiles for tier {self._tier}; report this with the model")
        made = self._build(layer, working, copies)
        names = iter(made.functions)
        functions = tuple(next(names) if each in working else None for each in knobs)
        return Library(made.data, functions, made.arguments, made.gpu)

    # ---- the board ----

    def connect(self, port: int, key: str, timeout_s: float) -> dict[str, Any]:
        """Connects to an agent; returns what it says the board is. This and the following raise RemoteError."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        info: dict[str, Any] = self._ask({"do": "connect", "port": port, "key": key, "timeout_s": timeout_s})
        return info

    def load(self, library: Library, n_copies: int) -> dict[str, Any] | None:
        """Brings a library to the board, with tensors for it. Of modules for a GPU, returns what the GPU is."""
        arguments = [(each.dtype, each.elements * (n_copies if each.rotates else 1)) for each in library.arguments]
        how = {"gpu": library.gpu} if library.gpu is not None else {"arguments": arguments}
        with tempfile.NamedTemporaryFile(prefix="edgellm-tune-") as file:
            file.write(library.data)
            file.flush()
            found: dict[str, Any] | None = self._ask({"do": "load", "path": file.name, **how})
        return found

    def measure(self, function: str, repeat: int = 3, min_repeat_ms: int = 20) -> dict[str, Any]:
        """Times a function of what was loaded (edgellm.rpc_client.Session.measure)."""
        request = {"do": "measure", "function": function, "repeat": repeat, "min_repeat_ms": min_repeat_ms}
        answer: dict[str, Any] = self._ask(request)
        return answer

    def drop(self) -> None:
        """Forgets the connection, if there is one."""
        if self._process is not None and self._process.poll() is None:
            self._ask({"do": "drop"})

    # ---- the process ----

    def _compiles(self, layer: Layer, knobs: Knobs, copies: int) -> bool:
        try:
            self._build(layer, [knobs], copies)
        except CodegenError:
            return False
        return True

    def _build(self, layer: Layer, knobs: list[Knobs], copies: int) -> Library:
        if self._process is None or self._process.poll() is not None:
            self._start()
        with tempfile.TemporaryDirectory(prefix="edgellm-tune-") as folder:
            output = Path(folder, "measured.so")
            answer = self._ask(
                {"do": "build", "layer": layer.key, "knobs": knobs, "copies": copies, "output": str(output)}
            )
            arguments = tuple(Argument(*each) for each in answer["arguments"])
            return Library(output.read_bytes(), tuple(answer["functions"]), arguments, answer.get("gpu"))

    def _start(self) -> list[dict[str, Any]]:
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgellm.tune_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=Path(__file__).parent.parent,  # `-m` looks here first: the user's folder must not lend it modules
            text=True,
            encoding="utf-8",
        )
        layers: list[dict[str, Any]] = self._ask(self._request)
        return layers

    def _ask(self, request: dict[str, Any]) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; the exit code says more
        of_board = request["do"] in ("connect", "load", "measure", "drop")
        if of_board and not select.select([process.stdout], [], [], _SILENCE_S)[0]:
            self.close()
            raise RemoteError(f"no answer from the board for {_SILENCE_S:.0f} s; check it and the network")
        line = process.stdout.readline()
        if not line and of_board:
            raise RemoteError(f"the measuring process ended with {process.wait()}: {self._said()}")
        if not line:
            raise CodegenError(
                f"the building process ended with {process.wait()} for tier {self._tier}: {self._said()}"
            )
        message = json.loads(line)
        if "error" in message:
            if of_board:
                raise RemoteError(message["text"])
            error = error_of(message["error"], message["text"])
            building = request["do"] == "build" and not isinstance(error, CodegenError | ModelError)
            raise CodegenError(str(error)) if building else error
        return message["result"]

    def _said(self) -> str:
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().splitlines() if line.strip()]
        return next(
            (line for line in reversed(lines) if "LLVM ERROR" in line), lines[-1] if lines else "it said nothing"
        )

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # it died with a request half read
                        pipe.close()
            self._process = None

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        self._stderr.close()
