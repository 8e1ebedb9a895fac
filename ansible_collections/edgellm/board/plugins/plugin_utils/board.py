"""What the action plug-ins of edgellm.board share. The work is edgellm's: edgellm.board_tasks.

It is done on the controller, so edgellm must be installed for the Python that runs Ansible.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

try:
    from crosscompile.errors import CompileError
    from edgellm import board_tasks, rollout_log
    from edgellm.address import SshAddress
    from edgellm.errors import EdgeError
except ImportError as error:
    raise AnsibleError(
        f"edgellm.board needs edgellm where Ansible runs ({error}): pip install edgellm into the Python of "
        "ansible-playbook, or pipx inject ansible-core edgellm"
    ) from error

__all__ = ["SPEC", "BoardAction", "board_tasks"]

SPEC: dict[str, dict[str, dict[str, Any]]] = {
    "deploy": {
        "bundle": {"type": "path"},
        "name": {"type": "str"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "service": {"type": "bool", "default": False},
        "port": {"type": "int"},
        "verify": {"type": "bool", "default": False},
        "require_signature": {"type": "bool", "default": False},
        "signed_by": {"type": "list", "elements": "str"},
        "encrypt": {"type": "bool", "default": False},
    },
    "rollback": {"from_version": {"type": "str", "required": True}, "name": {"type": "str"}},
    "service": {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "port": {"type": "int"},
        "sessions": {"type": "int"},
        "waiting": {"type": "int"},
        "context": {"type": "int"},
        "threads": {"type": "int"},
        "keep": {"type": "bool"},
    },
    "gc": {},
    "gpu": {},
    "info": {},
}
"""The options of each module; a test compares them with the documentation."""


class BoardAction(ActionBase):
    """An action whose module has only documentation."""

    _requires_connection = False  # Ansible's own is not opened; its settings are read

    def perform(
        self, name: str, task: Callable[..., dict[str, Any]], task_vars: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Runs a task of board_tasks, and says in Ansible's words what came of it."""
        _, options = self.validate_argument_spec(argument_spec=SPEC[name])
        variables = task_vars or {}
        board = str(variables.get("inventory_hostname", ""))
        try:
            where = self._where(board, variables)
            asked = board_tasks.Task(where, dict(options), self._task.check_mode, self._task.diff)
            return task(asked)
        except board_tasks.UNREACHABLE as error:
            return {"unreachable": True, "msg": str(error), "error": type(error).__name__}
        except (EdgeError, CompileError) as error:
            return {"failed": True, "msg": str(error), "error": type(error).__name__}

    def _where(self, board: str, variables: dict[str, Any]) -> board_tasks.Where:
        """How Ansible would reach the board, or how edgellm_host says it."""
        texts = {key: self._templar.template(variables.get(key)) for key in ("edgellm_board", "edgellm_host")}
        for key, value in texts.items():
            if value is not None and not isinstance(value, str):
                raise AnsibleError(f"{board}: {key} must be a text")
        kind, address = (str(value) if value else None for value in texts.values())
        transport = self._connection.transport
        if address is not None:
            return board_tasks.Where(board, kind, address)
        if transport == "local":
            return board_tasks.Where(board, kind)
        if transport not in ("ssh", "paramiko", "paramiko_ssh"):
            raise AnsibleError(f"{board}: edgellm.board reaches boards by ssh, not by {transport}; or set edgellm_host")
        self._unused(board)
        key = self._option("private_key_file")
        port, user, password = self._option("port"), self._option("remote_user"), self._option("password")
        ssh = SshAddress(
            str(self._option("host") or board),
            int(port) if port else None,
            str(user) if user else None,
            Path(str(key)).expanduser() if key else None,
        )
        return board_tasks.Where(board, kind, None, ssh, str(password) if password else None)

    def _option(self, name: str) -> Any:
        try:
            return self._connection.get_option(name)
        except KeyError:
            return None

    def _unused(self, board: str) -> None:
        """Options for the program ssh mean nothing to edgellm, which reads ~/.ssh/config: better said than ignored."""
        for name in ("ssh_common_args", "ssh_extra_args"):
            if given := self._option(name):
                rollout_log.write("note", board=board, text=f"{name} is not used; put it into ~/.ssh/config")
                self._display.warning(f"{board}: {name} ({given}) is not used by edgellm; put it into ~/.ssh/config")
