"""Golden prompts: what every board must answer, computed on this machine.

The same bundle contents give the same bits on every tier, so this machine's answer is the board's.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from crosscompile.checkpoint import Checkpoint
from crosscompile.target import Target, target_for
from edgellm.errors import ModelError

PROMPTS = ("Hello! What can you do?", "Turn on the light in the kitchen.")
N_TOKENS = 16
TIMEOUT_S = 600


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


def _run(directory: Path, *arguments: str) -> dict[str, list[int]]:
    command = [str(directory / "edgellm-rt"), "run", str(directory), *arguments]
    command += ["-n", str(N_TOKENS), "--temperature", "0", "--json"]
    answer = json.loads(output_of(command, "golden prompts", TIMEOUT_S).splitlines()[-1])
    return {"prompt": answer["prompt_ids"], "tokens": answer["ids"]}


def continuation(directory: Path, prompt: list[int]) -> dict[str, list[int]]:
    """The greedy continuation of token ids by the bundle in `directory`, which is for this machine."""
    return _run(directory, "--tokens", ",".join(map(str, prompt)))


def answers(directory: Path, source: Checkpoint) -> list[dict[str, list[int]]]:
    """Greedy continuations by the bundle in `directory`, which is for this machine.

    Two sentences through the chat template (plain text where there is none), and one prompt of arbitrary ids.
    Raises ModelError if the runtime fails.
    """
    vocab = int(source.config["vocab_size"])
    arbitrary = ",".join(str(7919 * i % vocab) for i in range(1, 12))
    return [_run(directory, "-p", text) for text in PROMPTS] + [_run(directory, "--tokens", arbitrary)]
