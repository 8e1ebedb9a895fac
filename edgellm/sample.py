"""One run of a program on this machine: its time, its memory, and how busy everything else was meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm import launcher
from edgellm.errors import PeerError
from edgellm.launcher import busy_s
from edgellm.terminal import one_line

_NUMBERS = ("wall_s", "other_cpu", "peak_rss_bytes", "major_faults")

WARM_FAULTS = 8
"""Pages read from the disk from which on a run counts as cold."""


@dataclass(frozen=True)
class Sample:
    """What a process did.

    wall_s          from its start until it was gone
    other_cpu       processors that everything else used meanwhile, the host's share of a virtual machine included
    peak_rss_bytes  most memory it had in RAM, mapped files included
    major_faults    pages that had to be read from the disk: the cache was not warm
    """

    out: str
    err: str
    wall_s: float
    other_cpu: float
    peak_rss_bytes: int
    major_faults: int

    def is_quiet(self, quiet: Quiet) -> bool:
        """Whether nothing that can be seen has disturbed the run."""
        return (quiet.below is None or self.other_cpu <= quiet.below) and self.major_faults <= WARM_FAULTS


@dataclass(frozen=True)
class Quiet:
    """How quiet the machine must be. below: processors that others may use (None: does not matter).

    wait_s: longest wait before a run. tries: most runs, of which the quietest counts.
    """

    below: float | None = None
    wait_s: float = 60.0
    tries: int = 4


def run_once(command: Sequence[str], timeout_s: float = 3600) -> Sample:
    """Runs a program, named by its path, to its end. Raises PeerError with its last words if it fails."""
    with tempfile.TemporaryDirectory(prefix="edgellm-sample-") as folder:
        out, err = f"{folder}/out", f"{folder}/err"
        answer = _launch([sys.executable, "-IS", launcher.__file__, out, err, *command], timeout_s)
        texts = [Path(name).read_bytes().decode(errors="replace") for name in (out, err) if Path(name).exists()]
    try:
        result = json.loads(answer)
    except ValueError as error:
        raise PeerError(f"{command[0]} did not run: {one_line(answer) or f'not in {timeout_s:.0f} s'}") from error
    if result["status"]:
        status = result["status"]
        how = f"was ended by signal {-status}" if status < 0 else f"failed with {status}"
        last = texts[1].strip().splitlines() or texts[0].strip().splitlines() or ["it said nothing"]
        raise PeerError(f"`{' '.join(command[:4])} …` {how}: {one_line(last[-1])}")
    return Sample(out=texts[0], err=texts[1], **{key: result[key] for key in _NUMBERS})


def _launch(command: Sequence[str], timeout_s: float) -> str:
    """The launcher's answer. It and what it started end together, also when we are interrupted."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    try:
        return process.communicate(timeout=timeout_s)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        return ""
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def run_quiet(command: Sequence[str], quiet: Quiet, runner: Callable[[Sequence[str]], Sample] = run_once) -> Sample:
    """run_once with a warm cache, while others leave the machine alone; the quietest run if none was quiet enough."""
    best: Sample | None = None
    for _ in range(quiet.tries):
        _wait_for_quiet(quiet)
        sample = runner(command)
        if best is None or (sample.major_faults > WARM_FAULTS, sample.other_cpu) < (
            best.major_faults > WARM_FAULTS,
            best.other_cpu,
        ):
            best = sample
        if sample.is_quiet(quiet):
            break
    assert best is not None
    return best


def _wait_for_quiet(quiet: Quiet) -> None:
    end = time.monotonic() + quiet.wait_s
    while quiet.below is not None and time.monotonic() < end:
        before, start = busy_s(), time.monotonic()
        time.sleep(0.5)
        if (busy_s() - before) / (time.monotonic() - start) <= quiet.below:
            return
