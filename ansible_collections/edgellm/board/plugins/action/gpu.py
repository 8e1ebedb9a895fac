"""The task itself; ../modules/gpu.py documents it."""

from __future__ import annotations

from typing import Any

from ansible_collections.edgellm.board.plugins.plugin_utils.board import BoardAction, board_tasks


class ActionModule(BoardAction):
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        return self.perform("gpu", board_tasks.ask_gpu, task_vars)
