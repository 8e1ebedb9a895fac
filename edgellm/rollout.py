"""A playbook of our collection run on a fleet by Ansible, and what is known of each board meanwhile and afterwards.

Waves, canary and budget are in the playbook and decided by Ansible; here it is started, followed and accounted for.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.ansible_inventory import unsafe, written
from edgellm.ansible_process import COLLECTION, ansible_argv, ansible_environment
from edgellm.errors import EdgeError
from edgellm.fleet import Fleet, Member
from edgellm.rollout_log import VARIABLE, Follower, new_path
from edgellm.terminal import one_line

WAITING, WORKING, CHANGED, SAME, FAILED, UNREACHABLE, CUT = (
    "waiting",
    "working",
    "changed",
    "same",
    "failed",
    "unreachable",
    "interrupted",
)
"""States of a board. Only the first two are left before the end; waiting at the end: not reached."""

DONE = (CHANGED, SAME)
WENT_WRONG = (FAILED, UNREACHABLE, CUT)

_POLL_S = 0.2
_ENDS_S = 30.0
_BOARD_FAILURES = (0, 2, 4, 6)  # ansible-playbook: all well; hosts failed; hosts unreachable; both


@dataclass
class BoardState:
    """A board on its way. text: what it does now, or why it failed; answer: what its task returned.

    wave counts from 1; 0 until its turn comes.
    """

    name: str
    group: str = ""
    state: str = WAITING
    wave: int = 0
    text: str = ""
    sent_bytes: int = 0
    total_bytes: int = 0
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def in_use(self) -> str | None:
        """The version that is in use there, if its task said so."""
        found = self.answer.get("in_use")
        return one_line(found, 64) if isinstance(found, str) else None

    @property
    def tok_s(self) -> float | None:
        """How fast it answered while it was tried, where its card made it measure."""
        proof = self.answer.get("proof")
        speed = proof.get("decode_tok_s") if isinstance(proof, dict) else None
        return float(speed) if isinstance(speed, (int, float)) else None


@dataclass
class Rollout:
    """All boards of a run. waves: their sizes; max_failures: of all boards. log: the file with every event."""

    boards: dict[str, BoardState]
    waves: list[int]
    max_failures: int
    log: Path
    n_canaries: int = 0
    notes: list[str] = field(default_factory=list)
    ended: bool = False
    interrupted: bool = False

    def of(self, *states: str) -> list[BoardState]:
        return [board for board in self.boards.values() if board.state in states]

    @property
    def wave(self) -> int:
        return max((board.wave for board in self.boards.values()), default=0)

    @property
    def stopped(self) -> bool:
        """Whether it ended before all boards had their turn."""
        return bool(self.of(WAITING))

    def apply(self, event: Mapping[str, Any]) -> None:
        """Takes in an event of the log; one that makes no sense changes nothing."""
        kind = event.get("event")
        if kind == "end":
            self.ended = True
        board = self.boards.get(str(event.get("board")))
        if board is None:
            return
        if kind == "begin":
            wave = event.get("wave")
            board.state, board.wave, board.text = WORKING, wave if isinstance(wave, int) else 0, "connecting"
        elif kind == "stage":
            board.text = one_line(str(event.get("text")), 80)
        elif kind == "bytes":
            sent, total = event.get("sent"), event.get("total")
            if isinstance(sent, int) and isinstance(total, int):
                board.sent_bytes, board.total_bytes, board.text = sent, total, "sending"
        elif kind == "note":
            self.notes.append(f"{board.name}: {one_line(str(event.get('text')))}")
        elif kind in ("ok", "failed", "unreachable", "skipped"):
            self._result(board, str(kind), event.get("result"))

    def _result(self, board: BoardState, kind: str, result: Any) -> None:
        answer = result if isinstance(result, dict) else {}
        if kind in ("ok", "skipped"):
            board.state = CHANGED if answer.get("changed") is True else SAME
            board.text = ""
        else:
            board.state = FAILED if kind == "failed" else UNREACHABLE
            text = str(answer.get("msg", "Ansible does not say why"))
            board.text = one_line(re.sub(rf"^{re.escape(board.name)} \([^()]*\): ", "", text))
        board.answer = answer


Show = Callable[[Rollout], None]
"""Called a few times a second with how things are."""


def play(
    playbook: str,
    fleet: Fleet,
    members: Sequence[Member],
    variables: Mapping[str, Any],
    *,
    waves: Sequence[int],
    max_failures: int,
    n_canaries: int = 0,
    show: Show,
    parallel: int = 10,
    check: bool = False,
    diff: bool = False,
) -> Rollout:
    """Runs a playbook of the collection on `members`, in their order, and returns when Ansible has ended.

    n_canaries: so many boards, the first ones, must all succeed; then the budget of max_failures counts.
    To be called from the main thread. Ctrl-C ends Ansible, and the answer says how far it came. Raises EdgeError if
    Ansible itself failed.
    """
    states = {member.name: BoardState(member.name, ", ".join(member.groups)) for member in members}
    rollout = Rollout(states, list(waves), max_failures, new_path(), n_canaries)
    with tempfile.TemporaryDirectory(prefix="edgellm-") as name:
        folder = Path(name)
        inventory = fleet.path
        if not fleet.is_ansible:
            inventory = folder / "inventory.json"
            inventory.write_text(json.dumps(written(members)))
        given = {
            **variables,
            "edgellm_boards": list(states),
            "edgellm_waves": list(waves),
            "edgellm_canaries": n_canaries,
            "edgellm_max_failures": max_failures,
        }
        (folder / "variables.json").write_text(json.dumps({key: unsafe(value) for key, value in given.items()}))
        words = ["-i", str(inventory), "-e", f"@{folder / 'variables.json'}", "--forks", str(parallel)]
        words += ["--check"] * check + ["--diff"] * diff
        argv = ansible_argv("playbook", f"{COLLECTION}.{playbook}", *words)
        with (folder / "output").open("wb") as output:
            status = _follow(argv, rollout, output.fileno(), show)
        said = (folder / "output").read_text(encoding="utf-8", errors="replace")
    if not rollout.interrupted and (status not in _BOARD_FAILURES or not rollout.ended):
        reason = one_line(said[-2000:]) or f"exit code {status}"
        raise EdgeError(f"Ansible ended with {status}: {reason}; the record is {rollout.log}")
    return rollout


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _follow(argv: Sequence[str], rollout: Rollout, output: int, show: Show) -> int:
    environment = ansible_environment(
        {
            VARIABLE: str(rollout.log),
            "ANSIBLE_STDOUT_CALLBACK": f"{COLLECTION}.events",
            "ANSIBLE_RETRY_FILES_ENABLED": "false",
            "ANSIBLE_DEPRECATION_WARNINGS": "false",
            "ANSIBLE_INVENTORY_UNPARSED_FAILED": "true",
        }
    )
    follower = Follower(rollout.log)
    before: dict[signal.Signals, Any] = {}
    # A session of its own: Ctrl-C is for us, who tell Ansible, and account for what it leaves.
    process = subprocess.Popen(
        argv, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
    try:
        # A terminal that goes away, or somebody's kill, is a Ctrl-C: no rollout goes on that nobody sees.
        for number in (signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, _interrupt)
        while True:
            try:
                ended = process.poll() is not None
                for event in follower.events():
                    rollout.apply(event)
                show(rollout)
                if ended:
                    break
                time.sleep(_POLL_S)
            except KeyboardInterrupt:
                if rollout.interrupted:  # for the second time
                    raise
                rollout.interrupted = True
                os.killpg(process.pid, signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(_ENDS_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        follower.close()
    for board in rollout.of(WORKING):
        board.state = CUT
        board.text = f"interrupted while {board.text or 'working'}"
    show(rollout)
    return process.returncode
