"""Documentation that all modules share."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
requirements:
  - edgellm, installed for the Python that runs Ansible
notes:
  - Runs on the controller and talks to the board by SSH or adb. Nothing is needed on the board, no Python either.
  - The board is reached as C(ansible_host), C(ansible_port), C(ansible_user), C(ansible_ssh_private_key_file) and
    C(ansible_password) say, and as C(~/.ssh/config) says; C(ssh_common_args) and the like are not used.
    C(edgellm_host) overrides all of them, C(user@host:port) or C(adb:SERIAL); C(connection=local) is this machine.
  - C(edgellm_board) is the type of a board, as C(edgellm boards) lists it; needed for Android and virtual boards only.
attributes:
  check_mode:
    description: Says what would change, and changes nothing.
    support: full
  diff_mode:
    description: Says what changes, before and after.
    support: full
  platform:
    description: Boards with Linux or Android.
    platforms: posix
    support: full
"""
