"""`deploy` at a terminal: a spinner with the stage, or the transfer's bar; elsewhere notes alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgellm.deployment import Reporter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def shown_transfer(quiet: bool) -> Iterator[Reporter]:
    """A reporter that draws a bar with rate and time left on a terminal, and else prints only notes."""
    if quiet or not sys.stderr.isatty():
        yield Notes()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    spinner = Progress(SpinnerColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True)
    bar = Progress(
        TextColumn("sending"),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=spinner.console,
        transient=True,
    )
    drawing = Drawing(spinner, bar)
    try:
        yield drawing
    finally:
        drawing.stop()


class Notes(Reporter):
    """Prints what the user should know, and nothing else."""

    def note(self, text: str) -> None:
        print(f"edgellm: {text}", file=sys.stderr, flush=True)


class Drawing(Notes):
    """One live line: a spinner with the stage, or the transfer's bar. Both are rich.progress.Progress."""

    def __init__(self, spinner: Progress, bar: Progress) -> None:
        self._spinner, self._bar = spinner, bar
        self._stage = spinner.add_task("looking at what is on the board", total=None)
        self._task: TaskID | None = None
        spinner.start()

    def stage(self, text: str) -> None:
        self._spinner.update(self._stage, description=text)

    def note(self, text: str) -> None:
        self._spinner.console.print(f"edgellm: {text}", highlight=False, markup=False, soft_wrap=True)

    def transfer_begins(self, n_bytes: int) -> None:
        self._spinner.stop()
        self._task = self._bar.add_task("sending", total=n_bytes)
        self._bar.start()

    def transferred(self, n_bytes: int) -> None:
        if self._task is not None:
            self._bar.advance(self._task, n_bytes)

    def transfer_ends(self) -> None:
        if self._task is not None:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None
        self._spinner.start()

    def stop(self) -> None:
        self._bar.stop()
        self._spinner.stop()
