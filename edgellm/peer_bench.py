"""Measure a model here and with a peer, in turn: every round takes one sample of each cell from either side.

The two sides of a cell are neighbours in time, change places from round to round, and have a measurement of the memory
bandwidth before, between and behind them, because a machine's speed wanders by more than the difference that is sought.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crosscompile.safetensors_stream import read_header
from edgellm.bandwidth import Probe
from edgellm.bundle import Bundle
from edgellm.errors import PeerError
from edgellm.figure import BLOCK, Figure
from edgellm.peer import Peer, Run
from edgellm.sample import Quiet, Sample, run_quiet

Progress = Callable[[str, int, int], None]

SIDES = ("edgellm", "peer")


def weight_bytes_per_token(bundle: Bundle) -> int:
    """Bytes of weights that one decoded token reads: an embedding that is not the head too is only looked up."""
    sizes = {}
    for file in sorted((bundle.path / "weights").glob("*.safetensors")):
        found, _ = read_header(file)
        sizes.update({name: info.n_bytes for name, info in found.items() if not name.startswith("__pad")})
    untied = any(name.startswith("lm_head.") for name in sizes)
    return sum(n for name, n in sizes.items() if not (untied and name.startswith("model.embed_tokens.")))


@dataclass(frozen=True)
class Match:
    """A bundle and what the peer is given to compare. label: for people; model: made by the peer's `prepare`."""

    label: str
    bundle: Bundle
    model: Path
    prompt: Path
    figures: tuple[Figure, ...]

    def limit_bytes(self, context: int) -> int:
        """Most memory that a run should take: weights, KV cache and 16 MB."""
        memory = self.bundle.manifest["memory"]
        kept = int(memory["kv_bytes_per_token"]) * context + int(memory.get("state_bytes_per_session", 0))
        return int(memory["weight_bytes"]) + kept + 16_000_000


@dataclass(frozen=True)
class Cell:
    """One row of the table: a figure of a match with a number of threads."""

    match: Match
    figure: Figure
    threads: int

    def context(self) -> int:
        """Positions that the run needs, in whole blocks."""
        longest = int(self.match.bundle.manifest["model"]["context_length"])
        return min(-(-self.figure.positions // BLOCK) * BLOCK, longest)

    def run(self) -> Run:
        """What the peer is to do."""
        return Run(self.match.model, self.figure, self.threads, self.context(), self.match.prompt)

    def command(self, side: str, peer: Peer) -> list[str]:
        """The command line of one sample."""
        if side == "peer":
            return peer.command(self.run())
        figure, match = self.figure, self.match
        program, folder = str(match.bundle.path / "edgellm-rt"), str(match.bundle.path)
        common = ["--threads", str(self.threads), "--context", str(self.context()), "--json"]
        if figure.kind == "first_token":
            text = match.prompt.read_text(encoding="utf-8")
            return [program, "run", folder, "--raw", "-p", text, "-n", "1", "--temperature", "0", *common]
        prompt, generate = (max(figure.depth, 1), figure.tokens) if figure.kind == "decode" else (figure.tokens, 1)
        sizes = ["--prompt", str(prompt), "--generate", str(generate), "--repeat", "1"]
        return [program, "bench", folder, *sizes, *common]

    def value(self, side: str, peer: Peer, sample: Sample) -> float:
        """What the sample says: tokens per second, or milliseconds of the whole process. Raises PeerError."""
        try:
            if side == "peer":
                return peer.value(self.run(), sample)
            if self.figure.kind == "first_token":
                return sample.wall_s * 1e3
            return float(json.loads(sample.out)["decode_tok_s" if self.figure.kind == "decode" else "prefill_tok_s"])
        except (ValueError, LookupError, TypeError) as error:
            raise PeerError(f"{self.figure.name}: an answer that is not understood: {sample.out[:80]!r}") from error


def cells(matches: Sequence[Match], threads: Sequence[int]) -> list[Cell]:
    """Every row of the table, in its order."""
    return [Cell(match, figure, n) for match in matches for n in threads for figure in match.figures]


def schedule(rows: Sequence[Cell], rounds: int) -> Iterator[tuple[int, int, tuple[str, str]]]:
    """(round, index of the cell, sides in their order): who goes first alternates in time and within each cell."""
    for round_ in range(rounds):
        for index in range(len(rows)):
            yield round_, index, SIDES if (round_ + index) % 2 == 0 else (SIDES[1], SIDES[0])


def measure(
    rows: Sequence[Cell], rounds: int, peer: Peer, probe: Probe, quiet: Quiet, progress: Progress
) -> list[dict[str, Any]]:
    """Samples of every cell, as the rows of the JSON document (edgellm.peer_result). Raises PeerError."""
    samples: list[list[dict[str, Any]]] = [[] for _ in rows]
    total = len(rows) * rounds
    for done, (round_, index, sides) in enumerate(schedule(rows, rounds)):
        cell = rows[index]
        progress(f"{cell.match.label}, {cell.threads} threads, {cell.figure.name}", done, total)
        wanted = cell.figure.kind == "decode"
        before = probe.measure(cell.threads) if wanted else None
        for side in sides:
            sample = run_quiet(cell.command(side, peer), quiet)
            after = probe.measure(cell.threads) if wanted else None
            entry: dict[str, Any] = {"round": round_, "side": side, "value": cell.value(side, peer, sample)}
            if before is not None and after is not None:
                fastest = max(before, after, key=lambda bandwidth: bandwidth.gb_s)
                entry |= {"bandwidth_gb_s": fastest.gb_s, "loop": fastest.loop}
            samples[index].append({**entry, **_about(sample)})
            before = after
    return [_row(cell, peer, taken) for cell, taken in zip(rows, samples, strict=True)]


def _about(sample: Sample) -> dict[str, Any]:
    return {
        "wall_s": round(sample.wall_s, 4),
        "other_cpu": round(sample.other_cpu, 3),
        "peak_rss_bytes": sample.peak_rss_bytes,
        "major_faults": sample.major_faults,
    }


def _row(cell: Cell, peer: Peer, samples: list[dict[str, Any]]) -> dict[str, Any]:
    match, figure = cell.match, cell.figure
    manifest = match.bundle.manifest
    weights, kv = weight_bytes_per_token(match.bundle), int(manifest["memory"]["kv_bytes_per_token"])
    n_bytes = weights + kv * (figure.depth + figure.tokens // 2) if figure.kind == "decode" else None
    return {
        "peer": peer.name,
        "model": manifest["model"]["name"],
        "match": match.label,
        "scheme": manifest["scheme"],
        "peer_types": peer.types(manifest["scheme"]),
        "threads": cell.threads,
        "figure": asdict(figure),
        "unit": figure.unit,
        "weight_bytes_per_token": weights,
        "bytes_per_token": n_bytes,
        "peer_bytes_per_token": peer.bytes_per_token(n_bytes),
        "limit_bytes": match.limit_bytes(cell.context()),
        "samples": samples,
    }


def sizes(bundle: Bundle, peer: Peer) -> dict[str, int]:
    """Bytes of either side's program code without symbols: ours with its kernels; the peer's libraries alone."""
    ours = sum((bundle.path / name).stat().st_size for name in ("edgellm-rt", "kernels.so"))
    return {"edgellm": ours, peer.name: peer.program_bytes()}
