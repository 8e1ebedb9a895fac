"""edgellm.compile_worker for tests that compile hundreds of times: its processes have loaded TVM before they begin."""

from __future__ import annotations

import functools
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import ForkServerContext
from typing import Any

_PRELOADED = "tests.preloaded"


@functools.cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
    return context


def _work(request: dict[str, Any]) -> dict[str, Any]:
    return sys.modules[_PRELOADED].work(request)  # type: ignore[no-any-return]


def compile_forked(request: dict[str, Any]) -> dict[str, Any]:
    """As edgellm.worker.run_worker: a process for each request, whose errors are raised here."""
    with ProcessPoolExecutor(1, _context()) as pool:
        return pool.submit(_work, request).result()
