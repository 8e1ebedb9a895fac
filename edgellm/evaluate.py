"""How much a scheme changes a model: its logits against scheme f32's on texts the model was not trained on.

Every scheme is compiled for this machine and run by the real runtime; bits are the same on every board.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.checkpoint import Checkpoint
from edgellm.compile import Options, compile_checkpoint
from edgellm.errors import ModelError, UsageError
from edgellm.golden import host_target

Progress = Callable[[str, int, int], None]

N_TOKENS = 512
"""Tokens taken of each text at most."""


@dataclass(frozen=True)
class Text:
    """A text and the spans of characters that are measured: a conversation's answers, or everything."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Sample:
    """Token ids and the positions whose prediction, the next token, is measured."""

    ids: list[int]
    positions: list[int]


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


def read_texts(file: Path, source: Checkpoint) -> list[Text]:
    """Texts of a file: .jsonl with {"messages": […]} or {"text": "…"} per line, else paragraphs of plain text.

    Conversations are rendered with the checkpoint's chat template. Raises UsageError for what is neither.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as text: {error}") from error
    if file.suffix != ".jsonl":
        return [_whole(part.strip()) for part in content.split("\n\n") if part.strip()]
    texts = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{file}: line {number} is not JSON ({error})") from error
        if isinstance(entry, dict) and isinstance(entry.get("messages"), list):
            texts.append(_conversation(source, entry))
        elif isinstance(entry, dict) and isinstance(entry.get("text"), str):
            texts.append(_whole(entry["text"]))
        else:
            raise UsageError(f'{file}: line {number} has neither "messages" nor "text"')
    return texts


def _whole(text: str) -> Text:
    return Text(text, ((0, len(text)),))


def _conversation(source: Checkpoint, entry: dict[str, Any]) -> Text:
    """A rendered conversation; what is measured is what follows each generation prompt."""
    messages = entry["messages"]
    full = _render(source, entry)
    spans = []
    for index, message in enumerate(messages):
        if index and isinstance(message, dict) and message.get("role") == "assistant":
            before = _render(source, {**entry, "messages": messages[:index], "add_generation_prompt": True})
            after = _render(source, {**entry, "messages": messages[: index + 1]})
            if after.startswith(before) and full.startswith(after):
                spans.append((len(before), len(after)))
    return Text(full, tuple(spans)) if spans else _whole(full)


def _render(source: Checkpoint, entry: dict[str, Any]) -> str:
    """A conversation as text, as transformers' apply_chat_template makes it."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if source.chat_template is None:
        raise UsageError(f'{source.path} has no chat template; give plain text or lines with "text"')
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        return environment.from_string(source.chat_template).render(**source.special_tokens, **entry)
    except TemplateError as error:
        raise UsageError(f"the chat template cannot render a conversation: {error}") from error


def encode(source: Checkpoint, texts: Sequence[Text], n_tokens: int) -> list[Sample]:
    """Samples of at most n_tokens; texts with nothing to measure are left out."""
    from tokenizers import Tokenizer

    if source.tokenizer_json is None:
        raise ModelError(f"{source.path} has no tokenizer.json")
    tokenizer = Tokenizer.from_str(source.tokenizer_json.decode("utf-8"))
    samples = []
    for text in texts:
        encoding = tokenizer.encode(text.text, add_special_tokens=False)
        starts = [start for start, _ in encoding.offsets[1:n_tokens]]
        positions = [at for at, start in enumerate(starts) if any(low <= start < high for low, high in text.spans)]
        if positions:
            samples.append(Sample(encoding.ids[:n_tokens], positions))
    return samples


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
) -> list[Quality]:
    """Quality of each scheme on the texts; f32 itself comes first.

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
    every = [Options("f32"), *(options for options in schemes if options != Options("f32"))]
    bundles = [compile_checkpoint(source, name, target, options, progress=show).bundle for options in every]
    tallies = [Tally() for _ in every]
    for index, sample in enumerate(encoded):
        show("comparing", index, len(encoded))
        exact = runtime_logits(bundles[0].path, sample.ids, vocab)
        for bundle, tally in zip(bundles, tallies, strict=True):
            found = exact if bundle is bundles[0] else runtime_logits(bundle.path, sample.ids, vocab)
            tally.add(exact, found, sample)
    return [
        tally.quality(_label(options), int(bundle.manifest["memory"]["weight_bytes"]))
        for options, bundle, tally in zip(every, bundles, tallies, strict=True)
    ]


def _label(options: Options) -> str:
    extra = [f"{what} {value}" for what, value in (("embedding", options.embedding), ("head", options.head)) if value]
    return ", ".join([options.scheme, *extra, *([f"kv {options.kv}"] if options.kv else [])])
