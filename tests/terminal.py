"""A program in a terminal of its own, and what a person sees there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pexpect
import pyte

PATIENCE_S = 120


class Terminal:
    """argv runs in a pseudo-terminal. Use it as a context manager."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], rows: int = 30, columns: int = 100) -> None:
        environment = {**env, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.child = pexpect.spawn(
            argv[0], list(argv[1:]), env=environment, dimensions=(rows, columns), timeout=PATIENCE_S
        )
        self._history = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        self._stream = pyte.ByteStream(self._history)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.child.close(force=True)

    def seen(self) -> str:
        """Everything that was shown for good, and the screen as it is now."""
        above = ["".join(line[x].data for x in range(self._history.columns)) for line in self._history.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self._history.display]).rstrip()

    def until(self, text: str, times: int = 1) -> str:
        """Reads until `text` stands there so many times; what is seen then."""
        while self.seen().count(text) < times:
            try:
                self._stream.feed(self.child.read_nonblocking(65536, PATIENCE_S))
            except (pexpect.EOF, pexpect.TIMEOUT) as error:
                raise AssertionError(f"{text!r} was not shown {times} times, but:\n{self.seen()}") from error
        return self.seen()

    def type(self, text: str) -> None:
        """As keys: \\r is Enter."""
        self.child.send(text)

    def end(self) -> int:
        """Reads to the end of the program; its exit code."""
        while True:
            try:
                self._stream.feed(self.child.read_nonblocking(65536, PATIENCE_S))
            except pexpect.EOF:
                break
        self.child.close()
        return int(self.child.exitstatus if self.child.exitstatus is not None else -self.child.signalstatus)
