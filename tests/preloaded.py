"""What tests.compiling loads once, for all processes that compile."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from edgellm import compile_worker

sys.modules["torch"] = None  # type: ignore[assignment]  # as edgellm.compile_worker has it
program = importlib.import_module("crosscompile.program")


class _Silent:
    """A channel to nobody."""

    def send(self, **message: Any) -> None: ...

    def progress(self, stage: str, done: int, total: int) -> None: ...


def work(request: dict[str, Any]) -> dict[str, Any]:
    """short: also rows that there are to be functions for; this process serves one request."""
    if isinstance(request.get("short"), list):
        program.SHORT_LADDER = program.Ladder(tuple(request["short"]), (1, 8))
    return compile_worker.work(request, _Silent())  # type: ignore[arg-type]
