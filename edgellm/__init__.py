"""edgellm: compile a language model for a board, deploy it, talk to it.

    import edgellm

    board = edgellm.find_board("rpi5", host="pi@raspberrypi.local")
    bundle = edgellm.compile_model("./MyModel", board)
    with edgellm.connect(board) as remote:
        edgellm.deploy(bundle, remote)

Names are imported on first use: `import edgellm` loads neither TVM nor an SSH client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.boards import Board, find_board, list_boards
    from edgellm.bundle import Bundle
    from edgellm.compile import compile_model
    from edgellm.connection import connect
    from edgellm.conversation import Chat
    from edgellm.deployment import Deployment, deploy
    from edgellm.errors import EdgeError
    from edgellm.remote import Remote
    from edgellm.runtime_program import find_model

__version__ = "0.1.0"

_HOMES = {
    "Board": "edgellm.boards",
    "Bundle": "edgellm.bundle",
    "Chat": "edgellm.conversation",
    "Deployment": "edgellm.deployment",
    "EdgeError": "edgellm.errors",
    "Remote": "edgellm.remote",
    "compile_model": "edgellm.compile",
    "connect": "edgellm.connection",
    "deploy": "edgellm.deployment",
    "find_board": "edgellm.boards",
    "find_model": "edgellm.runtime_program",
    "list_boards": "edgellm.boards",
}

__all__ = [
    "Board",
    "Bundle",
    "Chat",
    "Deployment",
    "EdgeError",
    "Remote",
    "compile_model",
    "connect",
    "deploy",
    "find_board",
    "find_model",
    "list_boards",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgellm' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
