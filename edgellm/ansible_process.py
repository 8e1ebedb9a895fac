"""Ansible, as a process of its own: found, told where our collection is, and started."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from edgellm.errors import UsageError

COLLECTION = "edgellm.board"
_LEAST = (2, 17)
_LIST_S = 120


def ansible_argv(program: str, *arguments: str) -> list[str]:
    """The command line of ansible-PROGRAM, of the same Python as ours. Raises UsageError if there is none."""
    if importlib.util.find_spec("ansible") is None:
        raise UsageError("fleets are rolled out to by Ansible, which is not installed: pip install 'edgellm[fleet]'")
    from importlib.metadata import version

    there = version("ansible-core")
    if tuple(int(part) for part in there.split(".")[:2] if part.isdigit()) < _LEAST:
        least = ".".join(map(str, _LEAST))
        raise UsageError(f"ansible-core {there} is too old; edgellm needs {least}: pip install 'edgellm[fleet]'")
    return [sys.executable, "-m", "ansible", program, *arguments]


def ansible_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our collection lies beside the package, where Ansible looks by itself as long as Python does.

    The user's own ansible.cfg counts, so that vaults and inventory plug-ins work as they are used to.
    """
    here = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": f"{here}{os.pathsep}{path}" if path else here,
        "ANSIBLE_COLLECTIONS_SCAN_SYS_PATH": "true",
        "ANSIBLE_NOCOLOR": "true",
        "ANSIBLE_FORCE_COLOR": "false",
        "LC_ALL": "C.UTF-8",  # Ansible runs in no other
        **(extra or {}),
    }


def run_ansible(program: str, *arguments: str) -> tuple[int, str, str]:
    """Runs it to its end: exit status, standard output and standard error."""
    argv = ansible_argv(program, *arguments)
    try:
        done = subprocess.run(
            argv, env=ansible_environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIST_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"no answer within {_LIST_S} s"
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
