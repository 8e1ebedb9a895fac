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
from edgellm.gguf_file import TYPES
from edgellm.peer import LIBRARIES, Peer, stripped_bytes
from edgellm.sample import Quiet, Sample, run_quiet

Progress = Callable[[str, int, int], None]

SIDES = ("edgellm", "peer")
BLOCK = 64
"""Positions per block of our KV cache."""


@dataclass(frozen=True)
class Figure:
    """Something that is measured. kind: decode, prefill or first_token; depth: positions in the cache before."""

    kind: str
    tokens: int
    depth: int = 0

    @property
    def name(self) -> str:
        if self.kind == "first_token":
            return f"first token of {self.tokens}"
        return f"decode {self.tokens} at {self.depth}" if self.kind == "decode" else f"prefill {self.tokens}"


FIGURES = (
    Figure("decode", 64, 0),
    Figure("decode", 64, 128),
    Figure("decode", 64, 2048),
    Figure("prefill", 128),
    Figure("prefill", 512),
    Figure("first_token", 128),
)


@dataclass(frozen=True)
class Match:
    """A bundle and the peer's file with the same bits in every tensor. label: for people."""

    label: str
    bundle: Bundle
    gguf: Path
    prompt: Path
    figures: tuple[Figure, ...]

    def weight_bytes_per_token(self) -> int:
        """Bytes of weights that one decoded token reads: an embedding that is not the head too is only looked up."""
        sizes = {}
        for file in sorted((self.bundle.path / "weights").glob("*.safetensors")):
            found, _ = read_header(file)
            sizes.update({name: info.n_bytes for name, info in found.items() if not name.startswith("__pad")})
        untied = any(name.startswith("lm_head.") for name in sizes)
        return sum(n for name, n in sizes.items() if not (untied and name.startswith("model.embed_tokens.")))

    def limit_bytes(self, context: int) -> int:
        """Most memory that a run should take: weights, KV cache and 16 MB."""
        memory = self.bundle.manifest["memory"]
        return int(memory["weight_bytes"]) + int(memory["kv_bytes_per_token"]) * context + 16_000_000


@dataclass(frozen=True)
class Cell:
    """One row of the table: a figure of a match with a number of threads."""

    match: Match
    figure: Figure
    threads: int

    def context(self) -> int:
        """Positions that the run needs, in whole blocks."""
        figure = self.figure
        needed = max(figure.depth, 1) + figure.tokens
        longest = int(self.match.bundle.manifest["model"]["context_length"])
        return min(-(-needed // BLOCK) * BLOCK, longest)

    def command(self, side: str, peer: Peer) -> list[str]:
        """The command line of one sample."""
        figure, match, n = self.figure, self.match, str(self.threads)
        if side == "edgellm":
            program, folder = str(match.bundle.path / "edgellm-rt"), str(match.bundle.path)
            common = ["--threads", n, "--context", str(self.context()), "--json"]
            if figure.kind == "first_token":
                text = match.prompt.read_text(encoding="utf-8")
                return [program, "run", folder, "--raw", "-p", text, "-n", "1", "--temperature", "0", *common]
            prompt, generate = (max(figure.depth, 1), figure.tokens) if figure.kind == "decode" else (figure.tokens, 1)
            sizes = ["--prompt", str(prompt), "--generate", str(generate), "--repeat", "1"]
            return [program, "bench", folder, *sizes, *common]
        if figure.kind == "first_token":
            options = ["-f", str(match.prompt), "-n", "1", "-c", str(self.context()), "-no-cnv", "--no-warmup"]
            return [peer.program("llama-completion"), "-m", str(match.gguf), "-t", n, *options, "--temp", "0"]
        what = ["-p", "0", "-n", str(figure.tokens), "-d", str(figure.depth)]
        if figure.kind == "prefill":
            what = ["-p", str(figure.tokens), "-n", "0"]
        return [peer.program("llama-bench"), "-m", str(match.gguf), "-t", n, "-r", "1", "-o", "json", *what]

    def value(self, side: str, sample: Sample) -> float:
        """What the sample says: tokens per second, or milliseconds of the whole process. Raises PeerError."""
        if self.figure.kind == "first_token":
            return sample.wall_s * 1e3
        try:
            answer = json.loads(sample.out)
            if side == "peer":
                return float(answer[0]["avg_ts"])
            return float(answer["decode_tok_s" if self.figure.kind == "decode" else "prefill_tok_s"])
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
            entry: dict[str, Any] = {"round": round_, "side": side, "value": cell.value(side, sample)}
            if before is not None and after is not None:
                fastest = max(before, after, key=lambda bandwidth: bandwidth.gb_s)
                entry |= {"bandwidth_gb_s": fastest.gb_s, "loop": fastest.loop}
            samples[index].append({**entry, **_about(sample)})
            before = after
    return [_row(cell, taken) for cell, taken in zip(rows, samples, strict=True)]


def _about(sample: Sample) -> dict[str, Any]:
    return {
        "wall_s": round(sample.wall_s, 4),
        "other_cpu": round(sample.other_cpu, 3),
        "peak_rss_bytes": sample.peak_rss_bytes,
        "major_faults": sample.major_faults,
    }


def _row(cell: Cell, samples: list[dict[str, Any]]) -> dict[str, Any]:
    match, figure = cell.match, cell.figure
    manifest = match.bundle.manifest
    weights, kv = match.weight_bytes_per_token(), int(manifest["memory"]["kv_bytes_per_token"])
    return {
        "model": manifest["model"]["name"],
        "match": match.label,
        "scheme": manifest["scheme"],
        "peer_types": {part: TYPES[manifest["scheme"][part]] for part in ("body", "embedding", "head")},
        "threads": cell.threads,
        "figure": asdict(figure),
        "unit": "ms" if figure.kind == "first_token" else "tok/s",
        "weight_bytes_per_token": weights,
        "bytes_per_token": weights + kv * (figure.depth + figure.tokens // 2) if figure.kind == "decode" else None,
        "limit_bytes": match.limit_bytes(cell.context()),
        "samples": samples,
    }


def sizes(bundle: Bundle, peer: Peer) -> dict[str, int]:
    """Bytes of either side's program code without symbols: ours with its kernels; the peer's libraries alone."""
    ours = sum((bundle.path / name).stat().st_size for name in ("edgellm-rt", "kernels.so"))
    files = [peer.directory / name for name in LIBRARIES if (peer.directory / name).is_file()]
    return {"edgellm": ours, "peer": stripped_bytes(files)}
