"""Documentation; ../action/gc.py is the task."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gc
short_description: Remove from a board what no model needs
description:
  - Files of versions that are gone, and what an interrupted deployment left. The version in use and the one before it
    always stay, of every model.
extends_documentation_fragment: [edgellm.board.board]
attributes:
  check_mode:
    description: Skipped, for only the board itself knows what it would remove.
    support: none
  diff_mode:
    support: none
author: the authors of edgellm
"""

EXAMPLES = r"""
- name: Make room
  edgellm.board.gc:
"""

RETURN = r"""
removed:
  description: Files and folders that were removed.
  returned: always
  type: int
freed_bytes:
  description: What they took.
  returned: always
  type: int
"""
