"""Look at this machine, and with --board at a board: what is well, what is not, and what to do about it.

On the board nothing is installed or changed: one shell script reads /proc and /sys and the first 64 MB of a file.
Exits with 1 if anything is an error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from edgellm.findings import ERROR, NOTE, OK, WARNING, Finding, board_findings, worst
from edgellm.selection import add_board
from edgellm.terminal import one_line

_EPILOG = """\
examples:
  edgellm doctor                     the tools on this machine
  edgellm doctor --board kitchen     that board; --host pi@address for one that has no name yet
  edgellm doctor --board local       this machine as a board
"""

_MARKS = {OK: ("✓", "green"), NOTE: ("·", "blue"), WARNING: ("!", "yellow"), ERROR: ("✗", "red")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_board(parser, required=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def main(args: argparse.Namespace) -> int:
    if args.board is None and args.host is None:
        from edgellm.host_examination import host_findings

        title, findings = "this machine", host_findings()
    else:
        title, findings = _board(args)
    if args.json:
        document = {"subject": title, "level": worst(findings), "findings": [each.as_json() for each in findings]}
        print(json.dumps(document, ensure_ascii=False))
    else:
        show(title, findings)
    return 1 if worst(findings) == ERROR else 0


def _board(args: argparse.Namespace) -> tuple[str, list[Finding]]:
    from edgellm.boards import find_board
    from edgellm.connection import connect
    from edgellm.errors import UsageError
    from edgellm.examination import examine

    if args.board is None:
        raise UsageError("which type of board is it? --board TYPE; `edgellm boards` lists them")
    board = find_board(args.board, args.host)
    with connect(board, args.host) as remote:
        return remote.name, board_findings(examine(remote), board)


def show(title: str, findings: Sequence[Finding]) -> None:
    """Prints the table and one line that sums it up."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column()
    subject = ""
    for finding in findings:
        mark, colour = _MARKS[finding.level]
        text = Text(one_line(finding.text))
        if finding.remedy and finding.level != OK:
            text.append(f"\n→ {one_line(finding.remedy)}", style="bold" if finding.level in (WARNING, ERROR) else "dim")
        elif finding.remedy:
            text.append(f"; {one_line(finding.remedy)}", style="dim")
        table.add_row(Text(mark, style=colour), finding.subject if finding.subject != subject else "", text)
        subject = finding.subject
    console = Console(highlight=False, markup=False)
    console.print(one_line(title), soft_wrap=True)
    console.print(table)
    counts = {level: sum(finding.level == level for finding in findings) for level in (ERROR, WARNING)}
    parts = [f"{n} {level}{'s' if n > 1 else ''}" for level, n in counts.items() if n]
    console.print(", ".join(parts) if parts else "nothing to mend", soft_wrap=True)
