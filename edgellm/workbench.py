"""Where runs are measured that predictions are fitted to: this machine, or a board over its connection."""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.bandwidth import build_probe, parse
from edgellm.board_session import ask_once
from edgellm.boards import Board
from edgellm.bundle import Bundle
from edgellm.deployment import deploy
from edgellm.errors import CommandError, EdgeError, PeerError
from edgellm.probe import probe
from edgellm.remote import Remote
from edgellm.runtime_program import run_json, runtime_argv
from edgellm.sample import Quiet, run_once
from edgellm.terminal import one_line

GENERATE, BLOCK = 24, 64
REPEAT = 3
"""Runs in a process, whose medians it answers with: one is as short as what a host does beside it."""
OTHERS = 0.15
"""Of Workbench.others where nobody says."""

PAUSE_S = 0.3
"""The pause gives other programs their turn, so that they do not take it in the middle of a sample."""

_FIGURES = ("decode_tok_s", "prefill_tok_s", "peak_rss_bytes")
_BENCH_S = 1800.0


@dataclass(frozen=True)
class Answer:
    """One process of `edgellm-rt bench`. quiet: nothing that can be seen took a thread's core."""

    decode_tok_s: float
    prefill_tok_s: float
    peak_rss_bytes: float
    quiet: bool


class Workbench(ABC):
    """A machine that runs bundles. Use it as a context manager.

    others: processors that other programs may use of those that a quiet sample needs.
    """

    board: Board
    others: float

    @abstractmethod
    def settle(self, bundle: Bundle, prompt: int) -> None:
        """Brings the bundle there and runs it once."""

    @abstractmethod
    def bench(self, bundle: Bundle, threads: int, prompt: int) -> Answer:
        """One process, its cache filled with a prompt, GENERATE tokens decoded behind it."""

    @abstractmethod
    def bandwidth(self, threads: int) -> float:
        """Bytes per second that so many threads read, now."""

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027  # nothing to leave behind is nothing to do
        """Removes what was brought there."""


class LocalWorkbench(Workbench):
    """This machine. Raises PeerError where a program fails."""

    def __init__(self, board: Board, others: float = OTHERS) -> None:
        self.board, self.others, self._probe = board, others, build_probe(board.target())

    def settle(self, bundle: Bundle, prompt: int) -> None:
        """Has the kernel hold of the weights what it would after a boot: what a process reads, in pieces as it reads.

        Files that were just written lie in the page cache in larger pieces, and looking up a row then maps more.
        """
        for file in (bundle.path / "weights").glob("*.safetensors"):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        self.bench(bundle, 1, prompt)

    def bench(self, bundle: Bundle, threads: int, prompt: int) -> Answer:
        time.sleep(PAUSE_S)
        argv = [str(bundle.path / "edgellm-rt"), "bench", str(bundle.path), *_options(threads, prompt), "--json"]
        sample = run_once(argv)
        try:
            answer = json.loads(sample.out)
        except ValueError as error:
            raise PeerError(f"edgellm-rt bench: an answer that is not JSON: {one_line(sample.out, 80)}") from error
        return _answer(answer, sample.is_quiet(Quiet(self.board.n_cores - threads + self.others)))

    def bandwidth(self, threads: int) -> float:
        time.sleep(PAUSE_S)
        return self._probe.measure(threads).gb_s * 1e9


class RemoteWorkbench(Workbench):
    """A board. Bundles are deployed under names of their own and removed at the end. Raises EdgeError."""

    def __init__(self, board: Board, remote: Remote, others: float = OTHERS) -> None:
        self.board, self.others, self._remote = board, others, remote
        self._facts = probe(remote)
        self._slots: dict[str, str] = {}
        self._program = posixpath.join(self._facts.home, ".edgellm", "bandwidth-probe")
        remote.script('mkdir -p "$1"', posixpath.dirname(self._program))
        remote.put(build_probe(board.target()).program, self._program)
        remote.script('chmod 755 "$1"', self._program)

    def settle(self, bundle: Bundle, prompt: int) -> None:
        done = deploy(bundle, self._remote, name=f"plan-{bundle.name}", facts=self._facts)
        self._slots[bundle.sha256] = done.path
        self.bench(bundle, 1, prompt)

    def bench(self, bundle: Bundle, threads: int, prompt: int) -> Answer:
        argv = runtime_argv(self._slots[bundle.sha256], "bench", *_options(threads, prompt))
        before = self._busy_s()
        answer = run_json(self._remote, argv, "edgellm-rt bench", _BENCH_S)
        return _answer(answer, before < self.board.n_cores - threads + self.others)

    def bandwidth(self, threads: int) -> float:
        argv = [self._program, "bench", "--bandwidth", "--threads", str(threads)]
        answer = run_json(self._remote, argv, "edgellm-rt bench --bandwidth", _BENCH_S)
        try:
            return parse(answer).gb_s * 1e9
        except ValueError as error:
            raise CommandError(f"{self._remote.name}: edgellm-rt bench --bandwidth gave {error}") from error

    def _busy_s(self) -> float:
        """Processors in use over half a second, by the kernel's count of idle time."""
        script = 'grep "^cpu " /proc/stat; sleep 0.5 2>/dev/null || sleep 1; grep "^cpu " /proc/stat'
        lines = [line.split()[1:9] for line in self._remote.script(script).text.splitlines()]
        if len(lines) != 2 or not all(number.isdigit() for line in lines for number in line):
            return 0.0  # what it does not say cannot be held against it
        first, second = ([int(number) for number in line] for line in lines)
        total = sum(second) - sum(first)
        idle = second[3] + second[4] - first[3] - first[4]
        return self.board.n_cores * (1 - idle / total) if total > 0 else 0.0

    def close(self) -> None:
        """Removes the deployed models and the probe, as far as the board still answers."""
        with contextlib.suppress(EdgeError):
            for name in {posixpath.basename(posixpath.dirname(slot)) for slot in self._slots.values()}:
                ask_once(self._remote, self._facts.home, "undeploy", name)
            self._remote.run(["rm", "-f", self._program])
        self._remote.close()


def context_of(prompt: int) -> int:
    """Positions that a sample makes room for, in whole blocks."""
    return -(-(prompt + GENERATE + 1) // BLOCK) * BLOCK


def _options(threads: int, prompt: int) -> list[str]:
    sizes = {"--prompt": prompt, "--generate": GENERATE, "--repeat": REPEAT, "--threads": threads}
    return [text for name, value in {**sizes, "--context": context_of(prompt)}.items() for text in (name, str(value))]


def _answer(document: Mapping[str, Any], quiet: bool) -> Answer:
    values = {}
    for name in _FIGURES:
        value = document.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e15:
            raise PeerError(f"edgellm-rt bench: {name} is {one_line(str(value), 40)}, not a positive number")
        values[name] = float(value)
    return Answer(**values, quiet=quiet)
