"""Fixtures for several folders: virtual boards in a cache of their own; nobody's running board is touched."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgellm import cache, virtual
from edgellm.address import SshAddress
from edgellm.boards import load_board
from tests.caches import own_cache

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def virtual_cache(tmp_path_factory) -> Iterator[Path]:
    """EDGELLM_CACHE in a temporary folder for the whole session; only the boards' downloaded parts are shared, and what
    is kept by content."""
    parts = cache.root() / "virtual" / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    own_cache(folder)
    (folder / "virtual").mkdir()
    (folder / "virtual" / "parts").symlink_to(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGELLM_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def start_board(virtual_cache) -> Iterator[Callable[[str], SshAddress]]:
    """Starts a virtual board by id, once per session; skips the test if this machine cannot run it."""
    started = []

    def start(board_id: str) -> SshAddress:
        board = load_board(board_id)
        if reason := virtual.availability(board):
            pytest.skip(f"{board_id}: {reason}")
        started.append(board)
        return virtual.start(board)

    yield start
    for board in started:
        virtual.stop(board)
