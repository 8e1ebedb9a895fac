"""Documentation; ../action/service.py is the task."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service
short_description: Have a model served from the start of a board
description:
  - A model on a board as a service. A hardened systemd unit where there is systemd, and the right to use it; else kept
    by edgellm-rt itself.
  - Does nothing if it runs already as the options say. Options that are not given stay as they are.
extends_documentation_fragment: [edgellm.board.board]
options:
  name:
    description: The model, as it is called on the board.
    type: str
    required: true
  state:
    description: Whether it is to be a service.
    type: str
    choices: [present, absent]
    default: present
  port:
    description: Its port on the board's loopback; 11434 by default.
    type: int
  sessions:
    description: Answers computed at a time.
    type: int
  waiting:
    description: Answers that may wait beyond those.
    type: int
  context:
    description: Positions per answer.
    type: int
  threads:
    description: Threads; by default as many as turn out fastest.
    type: int
  keep:
    description: What was computed of conversations outlives the server, in a folder that nobody else reads.
    type: bool
author: the authors of edgellm
"""

EXAMPLES = r"""
- name: Served from the start, eight answers at a time
  edgellm.board.service:
    name: assistant
    sessions: 8
"""

RETURN = r"""
service:
  description: Its kind, state and port, and whether it starts with the board; null where there is none.
  returned: not in check mode
  type: dict
healthy:
  description: Whether it answers.
  returned: not in check mode
  type: bool
"""
