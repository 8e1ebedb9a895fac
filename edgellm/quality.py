"""The quality card of a bundle: what its scheme changes, measured on a text, and the gate that it must pass.

The card is in the manifest, under `quality`. It is measured with the bundle's weights compiled for this machine; every
processor computes the same bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosscompile.checkpoint import Checkpoint
from edgellm import bundle as bundles
from edgellm import cache
from edgellm.bundle import Bundle
from edgellm.errors import QualityError, UsageError
from edgellm.evaluate import N_TOKENS, Quality, evaluate
from edgellm.precision import Options, Rounding
from edgellm.texts import read_texts

Show = Callable[[str, int, int], None]

N_TEXTS = 100


@dataclass(frozen=True)
class Gate:
    """texts: a file as `edgellm eval` takes it. max_kl: the mean divergence, in nats, that is shipped; None: any."""

    texts: Path
    max_kl: float | None = None
    n_texts: int = N_TEXTS
    n_tokens: int = N_TOKENS

    def __post_init__(self) -> None:
        if self.max_kl is not None and not (math.isfinite(self.max_kl) and self.max_kl >= 0):
            raise UsageError(f"--max-kl {self.max_kl}: a divergence in nats, 0 or more, is wanted")


def judged(
    base: Bundle, source: Checkpoint, name: str, options: Options, rounding: Rounding, gate: Gate, show: Show
) -> Bundle:
    """The bundle with its quality card, from the cache if it is there.

    Raises QualityError where it is worse than the gate allows, UsageError for texts that measure nothing.
    """
    card = _card(base, source, name, options, rounding, gate, show)
    check(card, gate, rounding)
    key = cache.key_of({"bundle": base.sha256, "quality": card})
    output = cache.root() / "bundles" / key
    with cache.locked(key):
        if found := bundles.intact(output):
            return found
        with bundles.building(output) as partial:
            bundles.link(base, partial)
            manifest = {k: v for k, v in base.manifest.items() if k not in ("format", "files")}
            bundles.seal(partial, {**manifest, "quality": card}, lambda done, total: show("checksums", done, total))
        return bundles.read(output)


def check(card: dict[str, Any], gate: Gate, rounding: Rounding) -> None:
    """Raises QualityError, with figure, threshold and remedy."""
    if gate.max_kl is None or card["kl_nats"] <= gate.max_kl:
        return
    remedies = [] if rounding.calibration else ["calibrate it (--calibrate TEXTS)"]
    remedies += ["use --scheme w8a8, or a larger --budget", f"allow --max-kl {card['kl_nats']:.2g}"]
    raise QualityError(
        f"not shipped: the scheme changes the model by a KL divergence of {card['kl_nats']:.4f} nats on "
        f"{gate.texts.name} ({card['bits_per_weight']:.2f} bits per weight, {card['top1_agreement']:.1%} of the tokens "
        f"the same), --max-kl allows {gate.max_kl:g}; {', or '.join(remedies)}"
    )


def _card(
    base: Bundle, source: Checkpoint, name: str, options: Options, rounding: Rounding, gate: Gate, show: Show
) -> dict[str, Any]:
    texts = read_texts(gate.texts, source)[: gate.n_texts]
    exact, *found = evaluate(source, name, [options], texts, gate.n_tokens, show, [rounding])
    return card_of(base, found[0] if found else exact, exact, gate.texts, rounding)


def card_of(base: Bundle, found: Quality, exact: Quality, texts: Path, rounding: Rounding) -> dict[str, Any]:
    """What the manifest says of a measured bundle."""
    calibration = None
    if rounding.directory is not None:
        from crosscompile.calibrated import read

        facts = read(rounding.directory).facts
        calibration = {"texts_sha256": facts["texts_sha256"], "tokens": facts["tokens"]}
    weights, parameters = base.manifest["memory"]["weight_bytes"], base.manifest["model"]["parameters"]
    return {
        "texts_sha256": hashlib.sha256(texts.read_bytes()).hexdigest(),
        "positions": found.n_positions,
        "kl_nats": round(found.kl_nats, 6),
        "top1_agreement": round(found.top1_agreement, 6),
        "perplexity": round(found.perplexity, 4),
        "perplexity_f32": round(exact.perplexity, 4),
        "bits_per_weight": round(8 * weights / max(parameters, 1), 3),
        "calibration": calibration,
    }


def sentence(card: dict[str, Any]) -> str:
    """A card in a line: KL 0.0123 nats from f32, 94.1 % top-1, perplexity 31.20 (f32 31.02), on 5,120 tokens."""
    calibration = card.get("calibration")
    how = f", calibrated on {calibration['tokens']:,} tokens" if calibration else ""
    return (
        f"KL {card['kl_nats']:.4f} nats from f32, {card['top1_agreement']:.1%} top-1, perplexity "
        f"{card['perplexity']:.2f} (f32 {card['perplexity_f32']:.2f}), on {card['positions']:,} tokens{how}"
    )
