"""Documentation; ../action/info.py is the task."""

from __future__ import annotations

DOCUMENTATION = r"""
module: info
short_description: What is deployed on a board
description: Models and their versions, what is in use, and what the board has. Changes nothing.
extends_documentation_fragment: [edgellm.board.board]
attributes:
  diff_mode:
    support: none
author: the authors of edgellm
"""

EXAMPLES = r"""
- name: Look
  edgellm.board.info:
  register: board

- name: Tell
  ansible.builtin.debug:
    var: board.in_use
"""

RETURN = r"""
in_use:
  description: The version in use of each model.
  returned: always
  type: dict
models:
  description: Each model with current, previous and slots.
  returned: always
  type: dict
runtime:
  description: The version of edgellm-rt that is installed; null where nothing was ever deployed.
  returned: always
  type: str
arch:
  description: What programs run there.
  returned: always
  type: str
memory_bytes:
  description: Its memory.
  returned: always
  type: int
free_bytes:
  description: Free space where models lie.
  returned: always
  type: int
"""
