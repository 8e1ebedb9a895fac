"""A server of the demo model, for everything that speaks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server import Server, compile_demo


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(compile_demo(tmp_path_factory.mktemp("demo")))
    yield server
    assert server.stop() == 0
