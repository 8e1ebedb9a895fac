"""What a comparison measured: a JSON document, and the statistics that tables, chart and prose are made of.

    {"format": 2, "machine": {…}, "peers": {name: {…}, …}, "rows": [row, …], "sizes": {…}, "instructions": [count, …]}

A row is one figure beside one peer with one number of threads, with every sample (edgellm.peer_bench). A count is one
emulated processor's (edgellm.emulated_bench). A later run replaces the rows that it measured
again and leaves the others.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import UsageError
from edgellm.figure import Figure

FORMAT = 2
COUNTED = "llama.cpp"
"""The peer of every count of instructions."""

NEAR_BANDWIDTH = 0.92
"""Share of the memory's bandwidth from which on a decode figure counts as bound by it."""


@dataclass(frozen=True)
class Statistics:
    """One row in numbers: medians of the samples.

    ratio             how many times as fast as the peer, above 1 is better; ratio_low and _high: of the single rounds
    share, peer_share of the bandwidth measured beside each sample; None where memory is not what limits, or unknown
    gb_s              what our samples read; bandwidth_gb_s: what could be read
    peak, peer_peak   most memory of any sample in bytes
    other_cpu         processors that others used
    """

    ours: float
    peer: float
    ratio: float
    ratio_low: float
    ratio_high: float
    share: float | None
    peer_share: float | None
    gb_s: float | None
    bandwidth_gb_s: float | None
    peak: int
    peer_peak: int
    other_cpu: float


def statistics_of(row: dict[str, Any]) -> Statistics:
    """The numbers of a row."""
    ours = [sample for sample in row["samples"] if sample["side"] == "edgellm"]
    peer = [sample for sample in row["samples"] if sample["side"] == "peer"]
    faster = row["unit"] == "tok/s"
    mine, theirs = _median(ours, "value"), _median(peer, "value")
    by_round = {sample["round"]: sample["value"] for sample in peer}
    pairs = [(sample["value"], by_round[sample["round"]]) for sample in ours if sample["round"] in by_round]
    ratios = [a / b if faster else b / a for a, b in pairs]
    n_bytes = row["bytes_per_token"]
    n_theirs = row.get("peer_bytes_per_token", n_bytes)
    return Statistics(
        ours=mine,
        peer=theirs,
        ratio=mine / theirs if faster else theirs / mine,
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        share=_share(ours, n_bytes),
        peer_share=_share(peer, n_theirs),
        gb_s=mine * n_bytes / 1e9 if n_bytes else None,
        bandwidth_gb_s=_median(ours + peer, "bandwidth_gb_s") if n_bytes else None,
        peak=max(sample["peak_rss_bytes"] for sample in ours),
        peer_peak=max(sample["peak_rss_bytes"] for sample in peer),
        other_cpu=_median(ours + peer, "other_cpu"),
    )


def _median(samples: Sequence[dict[str, Any]], key: str) -> float:
    return float(statistics.median(sample[key] for sample in samples))


def _share(samples: Sequence[dict[str, Any]], n_bytes: int | None) -> float | None:
    if not n_bytes:
        return None
    return float(statistics.median(s["value"] * n_bytes / 1e9 / s["bandwidth_gb_s"] for s in samples))


def figure_name(figure: dict[str, Any]) -> str:
    """What a row's figure is called."""
    return Figure(**figure).name


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is about; a later measurement of the same replaces it."""
    figure = row["figure"]
    return row["peer"], row["model"], row["match"], row["threads"], figure["kind"], figure["tokens"], figure["depth"]


def count_key(count: dict[str, Any]) -> tuple[Any, ...]:
    """What a count of instructions is about."""
    return count["model"], count["match"], count["cpu"], count["side"]


def read(file: Path) -> dict[str, Any]:
    """A document from an earlier run. Raises UsageError if the file is something else."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is not the JSON of an earlier comparison: {error}") from error
    if isinstance(document, dict) and document.get("format") == 1:
        document = _of_one_peer(document)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UsageError(f"{file} is not the JSON of an earlier comparison of this version; remove it")
    return document


def _of_one_peer(document: dict[str, Any]) -> dict[str, Any]:
    """A document of format 1, which knew one peer, in today's."""
    about = dict(document.pop("peer"))
    name = about.pop("name")
    return {
        **document,
        "format": FORMAT,
        "peers": {name: about},
        "rows": [{"peer": name, **row} for row in document["rows"]],
        "sizes": {key: {"edgellm": n["edgellm"], name: n["peer"]} for key, n in document["sizes"].items()},
    }


def merge(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """New rows and counts in the place of old ones about the same; everything else as the new run says."""
    if old is None:
        return new
    rows = {key_of(row): row for row in [*old["rows"], *new["rows"]]}
    peers = {name: {**old["peers"].get(name, {}), **about} for name, about in new["peers"].items()}
    sizes = {key: {**old["sizes"].get(key, {}), **n_bytes} for key, n_bytes in new["sizes"].items()}
    counts = {count_key(count): count for count in [*old["instructions"], *new["instructions"]]}
    return {
        **old,
        **new,
        "peers": {**old["peers"], **peers},
        "rows": list(rows.values()),
        "instructions": list(counts.values()),
        "sizes": {**old["sizes"], **sizes},
    }


def write(document: dict[str, Any], file: Path) -> None:
    """Writes the document, one row or sample a line, so that two runs can be compared by eye."""
    file.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
