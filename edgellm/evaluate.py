"""How much a scheme changes a model: its logits against scheme f32's on texts the model was not trained on.

Every scheme is compiled for this machine and run by the real runtime; bits are the same on every board.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crosscompile.checkpoint import Checkpoint
from edgellm.compile import compile_checkpoint
from edgellm.errors import ModelError, UsageError
from edgellm.golden import host_target
from edgellm.precision import PLAIN, Options, Rounding
from edgellm.texts import Sample, Text, encode

Progress = Callable[[str, int, int], None]

N_TOKENS = 512
"""Tokens taken of each text at most."""


@dataclass(frozen=True)
class Quality:
    """One scheme against f32, over every measured position: those that predict a token of an answer.

    kl_nats            mean Kullback-Leibler divergence of the scheme's next-token distribution from f32's
    top1_agreement     share of positions where the most likely token is the same
    perplexity         of the measured tokens under the scheme
    n_positions        how many were measured
    max_logit_error    largest |difference| of a logit, relative to the largest |logit|
    """

    scheme: str
    weight_bytes: int
    kl_nats: float
    top1_agreement: float
    perplexity: float
    max_logit_error: float
    n_positions: int


def runtime_logits(bundle: Path, ids: Sequence[int], vocab: int) -> np.ndarray:
    """Logits of every position, (n, vocab) float32, by the bundle's own program on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "logits"
        command = [str(bundle / "edgellm-rt"), "run", str(bundle), "--tokens", ",".join(map(str, ids))]
        command += ["--logits", str(file), "-n", "0", "--context", str(len(ids))]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            raise ModelError(f"the runtime failed: {done.stderr.decode('utf-8', 'replace').strip()}")
        return np.fromfile(file, np.float32).reshape(len(ids), vocab)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    values: np.ndarray = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return values


class Tally:
    """Sums over positions of one scheme's difference from f32."""

    def __init__(self) -> None:
        self.n = self.agreed = 0
        self.kl = self.nll = self.error = self.largest = 0.0

    def add(self, exact: np.ndarray, found: np.ndarray, sample: Sample) -> None:
        """exact, found: logits (n, vocab) of f32 and of the scheme after each of the sample's ids."""
        exact, found = exact[sample.positions], found[sample.positions]
        following = [sample.ids[position + 1] for position in sample.positions]
        p, q = _log_softmax(exact), _log_softmax(found)
        self.n += len(following)
        self.kl += float((np.exp(p) * (p - q)).sum())
        self.agreed += int((exact.argmax(-1) == found.argmax(-1)).sum())
        self.nll -= float(q[np.arange(len(following)), following].sum())
        self.error = max(self.error, float(np.abs(exact - found).max()))
        self.largest = max(self.largest, float(np.abs(exact).max()))

    def quality(self, scheme: str, weight_bytes: int) -> Quality:
        """The means."""
        perplexity = float(np.exp(self.nll / self.n))
        relative = self.error / self.largest if self.largest else 0.0
        return Quality(scheme, weight_bytes, self.kl / self.n, self.agreed / self.n, perplexity, relative, self.n)


def evaluate(
    source: Checkpoint,
    name: str,
    schemes: Sequence[Options],
    texts: Sequence[Text],
    n_tokens: int = N_TOKENS,
    progress: Progress | None = None,
    roundings: Sequence[Rounding] = (),
) -> list[Quality]:
    """Quality of each scheme on the texts; f32 itself comes first. roundings: of the first of `schemes`.

    Raises ModelError where this machine cannot run bundles or there is nothing to measure, CompileError as compiling.
    """
    show = progress or (lambda stage, done, total: None)
    target = host_target()
    if target is None:
        raise ModelError("schemes are compared by running them, and this machine's CPU has no tier to run")
    longest = source.config.get("max_position_embeddings") or source.config.get("n_positions")
    limit = min(n_tokens, int(longest or n_tokens))
    encoded = encode(source, texts, limit)
    if not encoded:
        raise UsageError(f"no text has anything to measure within its first {limit} tokens; give more or other texts")
    vocab = int(source.config["vocab_size"])
    chosen = [*roundings, *[PLAIN] * (len(schemes) - len(roundings))]
    pairs = zip(schemes, chosen, strict=True)
    every = [(Options("f32"), PLAIN), *(pair for pair in pairs if pair[0] != Options("f32"))]
    bundles = [
        compile_checkpoint(source, name, target, options, progress=show, rounding=rounding).bundle
        for options, rounding in every
    ]
    tallies = [Tally() for _ in every]
    for index, sample in enumerate(encoded):
        show("comparing", index, len(encoded))
        exact = runtime_logits(bundles[0].path, sample.ids, vocab)
        for bundle, tally in zip(bundles, tallies, strict=True):
            found = exact if bundle is bundles[0] else runtime_logits(bundle.path, sample.ids, vocab)
            tally.add(exact, found, sample)
    return [
        tally.quality(_label(options, rounding), int(bundle.manifest["memory"]["weight_bytes"]))
        for (options, rounding), bundle, tally in zip(every, bundles, tallies, strict=True)
    ]


def _label(options: Options, rounding: Rounding) -> str:
    extra = [f"{what} {value}" for what, value in (("embedding", options.embedding), ("head", options.head)) if value]
    kv = [f"kv {options.kv}"] if options.kv else []
    mixed = [f"{len(rounding.tensors)} tensors otherwise"] if rounding.tensors else []
    calibrated = ["calibrated"] if rounding.calibration is not None else []
    return ", ".join([options.scheme, *extra, *kv, *mixed, *calibrated])
