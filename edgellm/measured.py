"""What was measured, and what was fitted to it: boards/measured.json, and the user's own file of the same form.

`edgellm plan --fit` writes such a file; boards/published.json holds what others have published, each with its source.
Every value is checked, because people edit files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crosscompile.data import data_path
from edgellm.errors import BoardError
from edgellm.files import write_atomically
from edgellm.instances import instances_path
from edgellm.prediction import Coefficients, Memory

FORMAT = 1
FIGURES = ("decode", "prefill")


@dataclass(frozen=True)
class Run:
    """Samples of one figure. model: as on the command line; scheme: its Options, in order.

    tokens: generated, or of the prompt; depth: positions in the cache before. samples: (tok/s, bandwidth in bytes/s,
    peak memory in bytes).
    """

    model: str
    scheme: tuple[str | None, ...]
    threads: int
    figure: str
    tokens: int
    depth: int
    context: int
    samples: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Machine:
    """A processor that was measured.

    cpu, n_cores, tier     which one it is
    fitted_on              models whose runs gave the coefficients; the others only say how good they are
    bandwidth_bytes_per_s  median, by number of threads
    errors                 largest relative error of runs that were not fitted on, by figure and "memory"
    """

    cpu: str
    n_cores: int
    tier: str
    taken: str
    edgellm: str
    fitted_on: tuple[str, ...]
    bandwidth_bytes_per_s: dict[int, float]
    coefficients: Coefficients
    memory: Memory
    errors: dict[str, float]
    runs: tuple[Run, ...] = field(repr=False, default=())

    def as_json(self) -> dict[str, Any]:
        document = asdict(self)
        document["bandwidth_bytes_per_s"] = {str(n): value for n, value in self.bandwidth_bytes_per_s.items()}
        return document


@dataclass(frozen=True)
class Measured:
    """A whole file. instructions: per product by tier, kind of weights and rows; cores: fitted to published figures."""

    instructions: dict[str, dict[str, dict[str, float]]]
    cores: dict[str, Core]
    machines: tuple[Machine, ...]

    def machine(self, cpu: str, n_cores: int) -> Machine | None:
        return next((each for each in self.machines if (each.cpu, each.n_cores) == (cpu, n_cores)), None)


@dataclass(frozen=True)
class Core:
    """A kind of core, from other programs' published figures: a part of Coefficients.

    errors: largest relative error, by figure, over the published runs.
    """

    instructions_per_cycle: float
    imbalance: float
    overlap: float
    errors: dict[str, float]
    sources: tuple[str, ...]


def packaged_path() -> Path:
    """The file that ships with edgellm."""
    return data_path("boards") / "measured.json"


def own_path() -> Path:
    """The user's own file."""
    return instances_path().with_name("measured.json")


def load() -> Measured:
    """The packaged file, with the user's machines before it. Raises BoardError."""
    packaged = read(packaged_path())
    if not own_path().is_file():
        return packaged
    own = read(own_path())
    return Measured(packaged.instructions, packaged.cores, own.machines + packaged.machines)


def read(path: Path) -> Measured:
    """One file. Raises BoardError with the file and the field."""
    document = read_json(path)
    if document.get("format") != FORMAT:
        raise BoardError(f"{path}: format: must be {FORMAT}; make it anew with `edgellm plan --fit`")
    try:
        return Measured(
            instructions=_table(document["instructions"]),
            cores={name: _core(entry) for name, entry in document["cores"].items()},
            machines=tuple(_machine(entry) for entry in document["machines"]),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BoardError(
            f"{path}: {type(error).__name__}: {error}: a field is missing or has the wrong type; make it anew with "
            "`edgellm plan --fit`"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises BoardError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BoardError(f"{path}: cannot be read: {error}; make it anew with `edgellm plan --fit`") from error
    if not isinstance(document, dict):
        raise BoardError(f"{path}: must be a JSON object; make it anew with `edgellm plan --fit`")
    return document


def write(path: Path, measured: Measured) -> None:
    """Replaces a file. Raises BoardError if a fit came to what read() would not take, as of runs that scatter."""
    for machine in measured.machines:
        try:
            _machine(machine.as_json())
        except ValueError as error:
            raise BoardError(
                f"the fit for {machine.cpu} came to nothing sensible: {error}; measure again while nothing else runs, "
                f"with more --rounds ({path} stays as it is)"
            ) from error
    document = {
        "format": FORMAT,
        "instructions": measured.instructions,
        "cores": {name: asdict(core) for name, core in measured.cores.items()},
        "machines": [machine.as_json() for machine in measured.machines],
    }
    write_atomically(path, (_compact(json.dumps(document, indent=1, ensure_ascii=False)) + "\n").encode())


def _compact(text: str) -> str:
    """Lists of numbers on one line: a file that people can read and compare."""
    import re

    return re.sub(r"\[\s+((?:(?:-?[\d.e+-]+|null|\"[^\"]*\"),?\s+)+)\]", lambda m: f"[{' '.join(m[1].split())}]", text)


def _positive(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not 0 < number < 1e18:
        raise ValueError(f"{value!r} is not a positive number")
    return number


def _table(document: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        tier: {kind: {rows: _positive(count) for rows, count in counts.items()} for kind, counts in kinds.items()}
        for tier, kinds in document.items()
    }


def _errors(document: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in document.items()}


def _core(document: Mapping[str, Any]) -> Core:
    return Core(
        _positive(document["instructions_per_cycle"]),
        _positive(document["imbalance"]),
        _positive(document["overlap"]),
        _errors(document["errors"]),
        tuple(map(str, document["sources"])),
    )


def _machine(document: Mapping[str, Any]) -> Machine:
    names = Coefficients.__dataclass_fields__
    return Machine(
        cpu=str(document["cpu"]),
        n_cores=int(document["n_cores"]),
        tier=str(document["tier"]),
        taken=str(document["taken"]),
        edgellm=str(document["edgellm"]),
        fitted_on=tuple(map(str, document["fitted_on"])),
        bandwidth_bytes_per_s={int(n): _positive(v) for n, v in document["bandwidth_bytes_per_s"].items()},
        coefficients=Coefficients(**{name: _positive(document["coefficients"][name]) for name in names}),
        memory=Memory(*(float(document["memory"][name]) for name in Memory.__dataclass_fields__)),
        errors=_errors(document["errors"]),
        runs=tuple(_run(entry) for entry in document["runs"]),
    )


def _run(document: Mapping[str, Any]) -> Run:
    if document["figure"] not in FIGURES:
        raise ValueError(f"figure {document['figure']!r} is neither decode nor prefill")
    samples = tuple((_positive(speed), _positive(rate), float(peak)) for speed, rate, peak in document["samples"])
    counts = {name: int(document[name]) for name in ("threads", "tokens", "depth", "context")}
    scheme = tuple(None if part is None else str(part) for part in document["scheme"])
    if not samples or min(counts["threads"], counts["tokens"]) < 1:
        raise ValueError("a run needs samples, threads and tokens")
    return Run(model=str(document["model"]), scheme=scheme, figure=document["figure"], samples=samples, **counts)
