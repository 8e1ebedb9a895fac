"""Documentation; ../action/gpu.py is the task."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu
short_description: What the drivers of a board's GPU allow
description:
  - Brings C(edgellm-rt) to the board, once, and has it ask Vulkan's drivers there. In check mode it is taken away
    again.
  - A board without a driver, or whose driver fails, is no failure of the task.
  - Needs C(edgellm_board), the type of the board.
extends_documentation_fragment: [edgellm.board.board]
attributes:
  diff_mode:
    support: none
author: the authors of edgellm
"""

EXAMPLES = r"""
- name: Ask
  edgellm.board.gpu:
  register: board

- name: Tell
  ansible.builtin.debug:
    var: board.gpu
"""

RETURN = r"""
gpu:
  description: The GPU that would compute, in a line; null if there is none.
  returned: always
  type: str
why:
  description: Why there is none.
  returned: always
  type: str
unfit:
  description: Whether a bundle for a GPU alone could not run there.
  returned: always
  type: bool
devices:
  description: Every device that Vulkan finds there, with its limits, as C(edgellm-rt gpus) prints them.
  returned: always
  type: list
  elements: dict
"""
