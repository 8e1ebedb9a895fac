"""Golden prompts: what every board must answer, computed on this machine.

The same bundle contents give the same bits on every tier, so this machine's answer is the board's. A GPU's is within a
tolerance, by which its logits are compared with some of this machine's (runtime_c/FORMAT.md, golden).
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.checkpoint import Checkpoint
from crosscompile.target import Target, target_for
from edgellm.errors import ModelError

PROMPTS = ("Hello! What can you do?", "Turn on the light in the kitchen.")
N_TOKENS = 16
TIMEOUT_S = 600
N_SPREAD = 16
"""Logits that are kept of each token for a GPU, and the token's own."""
BEYOND_ROWS = 22
"""Ids of a GPU's long prompt behind those that its largest function takes at once (runtime_c/cli/golden_text.c)."""

Answer = dict[str, Any]
"""{"prompt": ids, "tokens": ids}, and for a GPU "logits"."""


def host_target() -> Target | None:
    """This machine as a target; None where bundles cannot run (not Linux, or a CPU without a tier)."""
    from crosscompile.errors import TargetError
    from edgellm.boards import load_board
    from edgellm.errors import BoardError

    if platform.system() != "Linux":
        return None
    try:
        local = load_board("local")
        return target_for(local.arch, local.cpu_features, local.os)
    except (TargetError, BoardError):
        return None


def output_of(command: Sequence[str], what: str, timeout_s: float) -> str:
    """What the runtime prints on this machine. Raises ModelError, which says `what` it was for."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"{what}: the runtime did not answer on this machine: {error}") from error
    if done.returncode:
        text = done.stderr.decode("utf-8", "replace").strip() or f"exit code {done.returncode}"
        raise ModelError(f"{what}: the runtime failed on this machine: {text}")
    return done.stdout.decode("utf-8", "replace")


def _run(directory: Path, *arguments: str) -> Answer:
    command = [str(directory / "edgellm-rt"), "run", str(directory), *arguments]
    command += ["-n", str(N_TOKENS), "--temperature", "0", "--json", "--device", "cpu"]
    answer = json.loads(output_of(command, "golden prompts", TIMEOUT_S).splitlines()[-1])
    return {"prompt": answer["prompt_ids"], "tokens": answer["ids"]}


def continuation(directory: Path, prompt: list[int]) -> Answer:
    """The greedy continuation of token ids by the bundle in `directory`, which is for this machine."""
    return _run(directory, "--tokens", ",".join(map(str, prompt)))


def answers(directory: Path, source: Checkpoint) -> list[Answer]:
    """Greedy continuations by the bundle in `directory`, which is for this machine.

    Two sentences through the chat template (plain text where there is none), and one prompt of arbitrary ids.
    Raises ModelError if the runtime fails.
    """
    vocab = int(source.config["vocab_size"])
    arbitrary = ",".join(map(str, _spread(1, 11, vocab)))
    return [_run(directory, "-p", text) for text in PROMPTS] + [_run(directory, "--tokens", arbitrary)]


def _spread(first: int, n: int, vocab: int) -> list[int]:
    return [7919 * i % vocab for i in range(first, first + n)]


def largest_rows(plan: Path) -> int:
    """The most rows that a plan's functions take at once."""
    return max(int(function["n"]) for function in json.loads(plan.read_text())["functions"])


def for_gpu(directory: Path, answers: Sequence[Answer], rows: int) -> list[Answer]:
    """The answers, and one to a prompt of more than `rows` ids, with logits that a GPU's are compared with.

    directory: the bundle for this machine that gave them. Raises ModelError if the runtime fails.
    """
    model = json.loads((directory / "manifest.json").read_text())["model"]
    vocab, most = int(model["vocab_size"]), int(model["context_length"]) - N_TOKENS
    prompt = _spread(N_SPREAD + 1, min(rows + BEYOND_ROWS, most), vocab)
    long = [{"prompt": prompt, "tokens": _beyond_ends(directory, prompt)}] if most > 0 else []
    return [with_logits(directory, answer, vocab) for answer in (*answers, *long)]


def with_logits(directory: Path, answer: Answer, vocab: int) -> Answer:
    """An answer of the bundle in `directory`, with logits that a GPU's are compared with."""
    return {**answer, "logits": _logits(directory, answer, vocab)}


def _beyond_ends(directory: Path, prompt: list[int]) -> list[int]:
    """The greedy continuation, whether or not it goes on behind a token that ends answers."""
    tokens: list[int] = []
    while len(tokens) < N_TOKENS:
        tokens += continuation(directory, [*prompt, *tokens])["tokens"]
    return tokens[:N_TOKENS]


def _logits(directory: Path, answer: Answer, vocab: int) -> list[list[float]]:
    """Of each token of an answer: those of ids that are spread over the vocabulary, then its own."""
    fed, file = [*answer["prompt"], *answer["tokens"][:-1]], directory / ".logits"
    command = [str(directory / "edgellm-rt"), "run", str(directory), "--tokens", ",".join(map(str, fed))]
    output_of([*command, "--logits", str(file)], "golden prompts", TIMEOUT_S)
    found = np.memmap(file, np.float32, "r", shape=(len(fed), vocab))[len(answer["prompt"]) - 1 :]
    ids = _spread(1, N_SPREAD, vocab)
    kept = [[*row[ids], row[token]] for row, token in zip(found, answer["tokens"], strict=True)]
    file.unlink()
    return [[float(f"{value:.6g}") for value in row] for row in kept]
