"""Mixtures of experts, where rounding decides between two experts that a router likes almost equally.

A token that another device sends to the other expert has other logits, and rightly so. What they have to be, the
processor says, with the two changed over there and nowhere else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.models import FAMILIES, name_of
from tests.compile.plan_runner import PlanRunner

Place = tuple[int, int]
"""A token's position, and which of the layers with experts."""
ROUNDING = 2.5e-4
"""Standard deviation of matrix units' products from NumPy's, of a row's largest: at most they lie 5e-4 to 1.1e-3 off
(docs/vulkan.md). Attention's lie 2.5 times as near."""
TIE = 0.2
"""Of the tolerance of logits: two experts are tied if their router logits differ by less, of the token's largest."""


class RoutedRunner(PlanRunner):
    """A plan for the processor, whose routers' decisions are known and can be changed.

    margins   by how much the last expert that is used exceeds the next one, of the largest of the token's router logits
    turned    where that next one is used instead: the two exchange their logits
    """

    def __init__(self, directory: Path, model: Path) -> None:
        super().__init__(directory)
        config = json.loads((model / "config.json").read_text())
        layers = FAMILIES[name_of(config)].design(config).layers
        ((self.total, self.used),) = {(layer.experts.total, layer.experts.used) for layer in layers if layer.experts}
        self.vocab: int = config["vocab_size"]
        self.margins = dict[Place, float]()
        self.turned = set[Place]()
        self.layer = 0

    def run(self, function: dict[str, Any], inputs: dict[str, np.ndarray]) -> None:
        self.layer = 0
        super().run(function, inputs)

    def call(self, kernel: dict[str, Any], args: list[Any], bound: dict[str, np.ndarray]) -> None:
        if "_route" in kernel["name"] and self.used < self.total:
            self.decide(self.arena[args[0][1] :][: kernel["args"][0]["bytes"]], bound["positions"].view(np.int32))
            self.layer += 1
        super().call(kernel, args, bound)

    def decide(self, raw: np.ndarray, positions: np.ndarray) -> None:
        for position, row in zip(positions, raw.view(np.float32).reshape(len(positions), -1), strict=True):
            if position >= 0:
                logits, place = row[: self.total], (int(position), self.layer)
                last, following = np.argsort(-logits, kind="stable")[self.used - 1 :][:2]
                self.margins[place] = float((logits[last] - logits[following]) / np.abs(logits).max())
                if place in self.turned:
                    logits[[last, following]] = logits[[following, last]]

    def logits_with(self, ids: list[int], turned: set[Place]) -> np.ndarray:
        self.turned = turned
        return self.logits(ids, self.vocab, 8)


def deviations(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The largest difference of each token's logits, relative to the largest of all."""
    return np.asarray(np.abs(found - expected).max(axis=1) / np.abs(expected).max())


def turn_ties(runner: RoutedRunner, ids: list[int], found: np.ndarray, tolerance: float) -> np.ndarray:
    """What `found` has to be; `runner.turned` is where ties are turned for that: of tokens off by more than tolerance.

    One after the other, as later tokens attend to what earlier ones' experts gave.
    """
    turned = set[Place]()
    while (off := deviations(found, expected := runner.logits_with(ids, turned))).max() > tolerance:
        token = int(np.argmax(off > tolerance))
        own = {place: margin for place, margin in runner.margins.items() if place[0] == token}
        ties = {place for place in own if own[place] < TIE * tolerance} - turned
        offs = {place: deviations(found, runner.logits_with(ids, turned | {place}))[token] for place in ties}
        nearest = min(offs, key=lambda place: offs[place], default=None)
        if nearest is None or offs[nearest] >= off[token]:
            runner.turned = turned
            break
        turned = turned | {nearest}
    return expected


class RoundedRunner(PlanRunner):
    """A plan for the processor whose matrix products are off, at random, as those of f16 are."""

    def __init__(self, directory: Path, vocab: int) -> None:
        super().__init__(directory)
        self.vocab, self.rng = vocab, np.random.default_rng(0)

    def call(self, kernel: dict[str, Any], args: list[Any], bound: dict[str, np.ndarray]) -> None:
        super().call(kernel, args, bound)
        quantized = "linear_w" in kernel["name"]
        if quantized or "_attention" in kernel["name"]:
            written = self.arena[args[-1][1] :][: kernel["args"][-1]["bytes"]].view(np.float32).reshape(8, -1)
            scale = (ROUNDING if quantized else ROUNDING / 2.5) * np.abs(written).max(axis=1, keepdims=True)
            written += (scale * self.rng.standard_normal(written.shape)).astype(np.float32)

    def logits_with(self, ids: list[int], seed: int) -> np.ndarray:
        self.rng = np.random.default_rng(seed)
        return self.logits(ids, self.vocab, 8)
