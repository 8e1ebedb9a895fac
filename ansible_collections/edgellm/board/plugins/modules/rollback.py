"""Documentation; ../action/rollback.py is the task."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rollback
short_description: Go back from a version of a model
description:
  - Boards that use the version O(from_version) go back to the one they used before. Others are left alone, so that
    doing it twice changes nothing, and that boards which a rollout has not reached stay as they are.
  - Nothing is sent. The version before must be sound and answer its golden prompts, else the board stays as it is.
  - The model's service is restarted if it has one.
extends_documentation_fragment: [edgellm.board.board]
options:
  from_version:
    description: The version to leave, as M(edgellm.board.deploy) returned it; its first digits are enough.
    type: str
    required: true
  name:
    description: The model, where several use this version.
    type: str
seealso:
  - module: edgellm.board.deploy
author: the authors of edgellm
"""

EXAMPLES = r"""
- name: Back to the model of yesterday
  edgellm.board.rollback:
    from_version: 93f6c3a81b2e4d05
"""

RETURN = r"""
model:
  description: The model that went back.
  returned: when changed
  type: str
previous:
  description: The version that was left.
  returned: when changed
  type: str
version:
  description: The version in use now, null where nothing used O(from_version).
  returned: always
  type: str
in_use:
  description: The version in use, or versions by model where nothing was changed.
  returned: always
  type: raw
healthy:
  description: Whether the service is well; null if the model is none.
  returned: when changed
  type: bool
"""
