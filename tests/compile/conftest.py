"""The demo model's bundle and the program that runs kernels, made once, and a server for each module that wants it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.server import Server, compile_demo
from tests.shaders import build_runner


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def program() -> Path:
    """What runs kernels on a GPU, one after the other (tests/shaders.py)."""
    return build_runner()


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    server = Server(bundle)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
