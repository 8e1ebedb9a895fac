"""What a fleet's user reads in the end: which board has which model, why one failed, and what to type next."""

from __future__ import annotations

import argparse
import shlex

from edgellm.fleet_show import list_boards, list_failures, names, say
from edgellm.rollout import CHANGED, CUT, SAME, WAITING, WENT_WRONG, BoardState, Rollout
from edgellm.terminal import one_line, size

SOME_FAILED, STOPPED, INTERRUPTED = 3, 4, 130
"""Exit codes: all boards had their turn and some failed; it was stopped, so that some had not; Ctrl-C."""


def exit_code(rollout: Rollout) -> int:
    if rollout.interrupted:
        return INTERRUPTED
    if rollout.stopped:
        return STOPPED
    return SOME_FAILED if rollout.of(*WENT_WRONG) else 0


def conclude(args: argparse.Namespace, rollout: Rollout, elapsed_s: float) -> None:
    """Who has which model, why, and what to type next."""
    new, same = rollout.of(CHANGED), rollout.of(SAME)
    wrong, unreached = rollout.of(*WENT_WRONG), rollout.of(WAITING)
    # A service that is not well has failed, and yet has the new version.
    unwell = [board for board in wrong if board.in_use is not None]
    minutes, seconds = divmod(int(elapsed_s), 60)
    say("rollout", f"{_verdict(rollout, wrong)}, after {minutes}:{seconds:02d}")
    list_boards("new", new)
    list_boards("had it", same)
    list_failures(wrong)
    list_boards("unwell", unwell)
    old = [board for board in wrong if board.in_use is None and board.state != CUT]
    list_boards("old model", [*old, *unreached])
    list_boards("not known", [board for board in rollout.of(CUT) if board.in_use is None])
    for note in dict.fromkeys(rollout.notes):
        say("note", note)
    say("record", str(rollout.log))
    if wrong or unreached:
        on = "mend what failed, then go on" if wrong else "go on"
        say("next", f"{on}; boards that have it are left alone: {_again(args)}")
    if (wrong or unreached) and (versions := sorted({b.in_use for b in (*new, *unwell) if b.in_use is not None})):
        for version in versions:
            back = f"edgellm rollback --fleet {shlex.quote(str(args.fleet))} --from {version}"
            say("", f"or go back on the boards that are new: {back}")
    elif not (wrong or unreached):
        say("next", f"edgellm status --fleet {shlex.quote(str(args.fleet))}")


def _verdict(rollout: Rollout, wrong: list[BoardState]) -> str:
    if rollout.interrupted:
        return "interrupted"
    if not wrong:
        return "done: all boards have it"
    failed = f"{len(wrong)} of {len(rollout.boards)} boards failed, {rollout.max_failures} were allowed to"
    if not rollout.stopped:
        return f"done, but {failed}"
    if rollout.wave == 1 and rollout.n_canaries:
        why = "its canaries must all succeed"
    elif len(wrong) > rollout.max_failures:
        why = "the budget is used up"
    else:
        why = "all boards of its last wave failed"
    return f"stopped after wave {rollout.wave} of {len(rollout.waves)}, for {why}: {failed}"


def _again(args: argparse.Namespace) -> str:
    """The command line once more, as far as it decides what is rolled out where."""
    words = ["edgellm", "deploy", "--fleet", str(args.fleet)]
    words += [word for group in args.group for word in ("--group", group)]
    for option in ("name", "scheme", "device", "embedding", "head", "kv", "context", "sign", "max_failures"):
        if (value := getattr(args, option)) is not None:
            words += [f"--{option.replace('_', '-')}", str(value)]
    words += [word for key in args.signed_by or () for word in ("--signed-by", key)]
    words += [
        f"--{option.replace('_', '-')}"
        for option in ("service", "require_signature", "encrypt")
        if getattr(args, option)
    ]
    if args.waves:
        words += ["--waves", ",".join(args.waves)]
    return shlex.join([*words, *([args.model] if args.model else [])])


def conclude_check(args: argparse.Namespace, rollout: Rollout) -> None:
    list_boards("change", rollout.of(CHANGED))
    list_boards("have it", rollout.of(SAME))
    list_failures(rollout.of(*WENT_WRONG))
    for note in dict.fromkeys(rollout.notes):
        say("note", note)
    say("next", f"roll it out: {_again(args)}")


def show_status(rollout: Rollout) -> None:
    """A table of boards with what they use, and how many use each version."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("board", "group", "model", "version", "before", "free", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for board in rollout.boards.values():
        answer, models = board.answer, board.answer.get("models")
        free = size(answer["free_bytes"]) if isinstance(answer.get("free_bytes"), int) else ""
        rows: list[tuple[str, str, str]] = []
        for name, model in models.items() if isinstance(models, dict) else ():
            rows.append((name, str(model.get("current") or "–"), str(model.get("previous") or "")))
        for name, current, previous in rows or [("–", "", "")]:
            cells = (board.name, board.group, name, current, previous, free, board.text)
            table.add_row(*(Text(one_line(cell)) for cell in cells))
    Console(soft_wrap=True).print(table)
    used: dict[str, list[BoardState]] = {}
    for board in rollout.boards.values():
        versions = board.answer.get("in_use")
        for name, version in versions.items() if isinstance(versions, dict) else ():
            used.setdefault(one_line(f"{name} {version}"), []).append(board)
    for version, boards in used.items():
        say("in use", f"{version} on {len(boards)}: {names(boards, 200)}")
