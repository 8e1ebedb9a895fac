"""A rollout on the terminal: the table while it runs, a line per board where there is no terminal, and the report."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgellm.rollout import CHANGED, CUT, FAILED, SAME, UNREACHABLE, WAITING, WORKING, BoardState, Rollout, Show
from edgellm.terminal import one_line, printable, size

if TYPE_CHECKING:
    from rich.console import Group

_RANK = {WORKING: 0, FAILED: 1, UNREACHABLE: 1, CUT: 1, CHANGED: 2, SAME: 3, WAITING: 4}
_COLOUR = {
    WORKING: "cyan",
    FAILED: "red",
    UNREACHABLE: "red",
    CUT: "red",
    CHANGED: "green",
    SAME: "dim",
    WAITING: "dim",
}
_AROUND = 6  # lines around the rows: header, heads, what is left out


@contextmanager
def shown(quiet: bool, words: dict[str, str]) -> Iterator[Show]:
    """words: what the states `changed` and `same` are called, for a rollout, a rehearsal or a way back."""
    if quiet:
        yield lambda rollout: None
        return
    if not sys.stdout.isatty():
        yield Lines(words)
        return
    from rich.console import Console
    from rich.live import Live

    began = time.monotonic()
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def draw(rollout: Rollout) -> None:
            room = max(3, console.height - _AROUND)
            live.update(table(rollout, words, room, time.monotonic() - began), refresh=True)

        yield draw


class Lines:
    """A line for each board when it is done."""

    def __init__(self, words: dict[str, str]) -> None:
        self._words = words
        self._said: set[str] = set()

    def __call__(self, rollout: Rollout) -> None:
        width = max(map(len, rollout.boards), default=0)
        for board in rollout.boards.values():
            if board.state not in (WAITING, WORKING) and board.name not in self._said:
                self._said.add(board.name)
                wave = f"wave {board.wave:<3}" if len(rollout.waves) > 1 else ""
                state = self._words.get(board.state, board.state)
                print(f"{wave}{board.name:<{width}}  {state:<12} {outcome(board)}".rstrip(), flush=True)


def table(rollout: Rollout, words: dict[str, str], room: int, elapsed_s: float) -> Group:
    """The live table: who is at work and who failed first, as many rows as there is room for."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = sorted(rollout.boards.values(), key=lambda board: (_RANK[board.state], board.wave))
    drawn = Table("board", "group", "wave", "state", "sent", "tok/s", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for board in rows[:room]:
        sent = f"{size(board.sent_bytes)} of {size(board.total_bytes)}" if board.total_bytes else ""
        cells = (board.name, board.group, str(board.wave or ""), words.get(board.state, board.state), sent)
        speed = f"{board.tok_s:.1f}" if board.tok_s is not None else ""
        texts = [Text(one_line(cell), style=_COLOUR[board.state] if i == 3 else "") for i, cell in enumerate(cells)]
        what = board.text if board.state != CHANGED else (board.in_use or "")
        drawn.add_row(*texts, Text(speed), Text(what, overflow="ellipsis", no_wrap=True))
    left = Counter(words.get(board.state, board.state) for board in rows[room:])
    more = f"… and {', '.join(f'{n} {state}' for state, n in left.items())}" if left else ""
    return Group(Text(headline(rollout, elapsed_s)), drawn, Text(more))


def headline(rollout: Rollout, elapsed_s: float) -> str:
    n_done, n_failed = len(rollout.of(CHANGED, SAME)), len(rollout.of(FAILED, UNREACHABLE, CUT))
    wave = f"wave {rollout.wave or 1} of {len(rollout.waves)}, " if len(rollout.waves) > 1 else ""
    minutes, seconds = divmod(int(elapsed_s), 60)
    failed = f"{n_failed} failed, {rollout.max_failures} may"
    return f"{wave}{n_done} of {len(rollout.boards)} boards done, {failed}, {minutes}:{seconds:02d}"


def outcome(board: BoardState) -> str:
    """What came of a board, in a line."""
    if board.state not in (CHANGED, SAME):
        return board.text
    answer, parts = board.answer, []
    if isinstance(gpu := answer.get("gpu") or answer.get("why"), str):
        parts.append(one_line(gpu))
    version = board.in_use or answer.get("version")
    if isinstance(version, str):
        parts.append(one_line(version, 64))
    sent, seconds = answer.get("sent_bytes"), answer.get("seconds")
    if isinstance(sent, int) and sent:
        took = f" in {seconds:.1f} s" if isinstance(seconds, (int, float)) else " would be sent"
        parts.append(f"{size(sent)}{took}")
    if board.tok_s is not None:
        parts.append(f"{board.tok_s:.1f} tokens/s")
    if answer.get("healthy") is True:
        parts.append("service healthy")
    return ", ".join(parts)


def names(boards: Iterable[BoardState], limit: int = 1000) -> str:
    """Names of boards in a line."""
    return one_line(", ".join(board.name for board in boards), limit)


def as_json(rollout: Rollout) -> dict[str, Any]:
    """What --json prints of a rollout."""
    return {
        "stopped": rollout.stopped,
        "interrupted": rollout.interrupted,
        "waves": rollout.waves,
        "max_failures": rollout.max_failures,
        "log": str(rollout.log),
        "boards": {
            board.name: {
                "group": board.group,
                "wave": board.wave or None,
                "state": "not reached" if board.state == WAITING else board.state,
                "why": board.text if board.state in (FAILED, UNREACHABLE, CUT) else None,
                **board.answer,
            }
            for board in rollout.boards.values()
        },
    }


def show_diffs(rollout: Rollout) -> None:
    """What changes, each difference once, with the boards that it is the same for."""
    from difflib import unified_diff

    alike: dict[tuple[str, str], list[BoardState]] = {}
    for board in rollout.boards.values():
        diff = board.answer.get("diff")
        if isinstance(diff, dict) and diff.get("before") != diff.get("after"):
            alike.setdefault((str(diff.get("before")), str(diff.get("after"))), []).append(board)
    for (before, after), boards in alike.items():
        print(f"difference on {names(boards)}:")
        lines = unified_diff(before.splitlines(), after.splitlines(), "in use", "new", lineterm="", n=0)
        print("\n".join(f"  {printable(line)}" for line in lines), flush=True)


def say(key: str, text: str) -> None:
    """A line of a report."""
    print(f"{key:<11}{text}", flush=True)


def list_boards(key: str, boards: Sequence[BoardState]) -> None:
    """Boards under one key, if there are any: how many, and which."""
    if boards:
        say(key, f"{len(boards)}: {names(boards)}")


def list_failures(boards: Sequence[BoardState]) -> None:
    """Each board that failed, and why."""
    width = max((len(board.name) for board in boards), default=0)
    for i, board in enumerate(boards):
        say("failed" if i == 0 else "", f"{board.name:<{width}}  {board.text}")
