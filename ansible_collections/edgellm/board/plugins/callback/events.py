"""What comes of each task, for `edgellm deploy --fleet` to show."""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: events
type: stdout
short_description: Results of edgellm.board's tasks as lines of JSON
description:
  - Appends a line of JSON for each board that a task begins on, and for what came of it, to the file that the
    environment variable E(EDGELLM_ROLLOUT_LOG) names. Prints nothing. C(edgellm deploy --fleet) draws its table of it.
requirements:
  - edgellm, installed for the Python that runs Ansible
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "edgellm.board.events"

    def __init__(self) -> None:
        super().__init__()
        self._wave = 0

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Ansible calls it for each batch of `serial`."""
        self._wave += 1

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        if _is_ours(task.action):
            _write("begin", board=host.get_name(), wave=self._wave)

    def v2_runner_on_ok(self, result: Any) -> None:
        self._result("ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._result("failed", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._result("unreachable", result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._result("skipped", result)

    def v2_playbook_on_no_hosts_matched(self) -> None:
        _write("nobody")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        _write("end")

    def _result(self, event: str, result: Any) -> None:
        host, task, values = result._host.get_name(), result._task, result._result
        if not _is_ours(task.action) and event in ("ok", "skipped"):
            return
        hidden = values.get("_ansible_no_log", False)
        kept = {key: value for key, value in values.items() if not key.startswith("_") and key != "invocation"}
        _write(event, board=host, task=task.action, result={} if hidden else kept)


def _is_ours(action: str) -> bool:
    return action.startswith("edgellm.board.")


def _write(event: str, **values: Any) -> None:
    from edgellm.rollout_log import write  # Ansible imports every callback, also where there is no edgellm

    write(event, **values)
