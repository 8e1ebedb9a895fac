"""The task itself; ../modules/deploy.py documents it."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail

from ansible_collections.edgellm.board.plugins.plugin_utils.board import BoardAction, board_tasks


class ActionModule(BoardAction):
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        needed, task = "bundle", board_tasks.deploy
        if self._task.args.get("state") == "absent":
            needed, task = "name", board_tasks.undeploy
        if not self._task.args.get(needed):
            raise AnsibleActionFail(f"edgellm.board.deploy needs {needed}")
        return self.perform("deploy", task, task_vars)
