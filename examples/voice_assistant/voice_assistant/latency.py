"""How long each stage of an answer took, and what that is over many answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

STAGES = {
    "endpoint": "speech ends → end of utterance known",
    "stt": "→ text",
    "llm": "→ first token",
    "sentence": "→ first sentence",
    "tts": "→ its sound",
    "audio": "→ handed to the player",
}
"""In order: each stage begins where the one before ends. Local commands have no `llm`."""


@dataclass
class Marks:
    """When things happened in one turn, on the monotonic clock, in seconds."""

    speech_end: float
    at: dict[str, float] = field(default_factory=dict)

    def mark(self, stage: str, now: float) -> None:
        """Only the first time counts."""
        self.at.setdefault(stage, now)

    def stages_ms(self) -> dict[str, float]:
        """Milliseconds of each stage that was reached, and their sum as `total`."""
        result, before = {}, self.speech_end
        for stage in STAGES:
            if stage in self.at:
                result[stage] = 1000 * (self.at[stage] - before)
                before = self.at[stage]
        result["total"] = 1000 * (before - self.speech_end)
        return result


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest ranks, as NumPy's. values: not empty."""
    ordered = sorted(values)
    whole, part = divmod(share * (len(ordered) - 1), 1)
    low = ordered[int(whole)]
    return low + part * (ordered[min(int(whole) + 1, len(ordered) - 1)] - low)


def report(turns: Iterable[Mapping[str, float]]) -> list[tuple[str, int, float, float]]:
    """For each stage: its name, how many turns had it, p50 and p95 in milliseconds."""
    every = list(turns)
    rows = []
    for stage in (*STAGES, "total"):
        values = [turn[stage] for turn in every if stage in turn]
        if values:
            rows.append((stage, len(values), percentile(values, 0.5), percentile(values, 0.95)))
    return rows


def table(rows: Sequence[tuple[str, int, float, float]]) -> str:
    """The report as Markdown."""
    lines = ["| stage | n | p50 | p95 |", "|---|---|---|---|"]
    for stage, count, middle, high in rows:
        text = STAGES.get(stage, "**speech ends → first sound**")
        lines.append(f"| {stage}: {text} | {count} | {middle:.0f} ms | {high:.0f} ms |")
    return "\n".join(lines)


def read_turns(text: str) -> list[dict[str, float]]:
    """The turns in the events that the assistant printed, one JSON object a line."""
    events = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [event["stages_ms"] for event in events if event.get("event") == "turn"]
