"""Documentation; ../action/deploy.py is the task."""

from __future__ import annotations

DOCUMENTATION = r"""
module: deploy
short_description: Have a model in use on a board
description:
  - Sends what the board lacks of a bundle, has it verified there, tries its golden prompts and switches over to it.
  - All of it or nothing. The version that was in use answers until the new one has proved itself, and stays for
    M(edgellm.board.rollback).
  - Does nothing if the board uses this version already.
extends_documentation_fragment: [edgellm.board.board]
options:
  bundle:
    description:
      - The bundle, a directory on the controller made by C(edgellm compile) or C(edgellm import).
      - Needed unless O(state=absent).
    type: path
  name:
    description: What the model is called on the board. By default its own name. Needed for O(state=absent).
    type: str
  state:
    description: With V(absent) the model is removed, with all of its versions.
    type: str
    choices: [present, absent]
    default: present
  service:
    description:
      - Make it a service that starts with the board. One that is a service already is restarted anyway, with the port
        and the options that it has.
    type: bool
    default: false
  port:
    description: The service's port on the board's loopback; 11434 for a new one by default.
    type: int
  verify:
    description: Hash everything on the board even if nothing changed.
    type: bool
    default: false
  require_signature:
    description: Refuse a bundle that is not signed, and pin the key that signed it on the board.
    type: bool
    default: false
  signed_by:
    description: The same, by one of these public keys, files or names.
    type: list
    elements: str
  encrypt:
    description: Encrypt the weights on the board's disk, with a key of its own that the controller keeps.
    type: bool
    default: false
seealso:
  - module: edgellm.board.rollback
  - module: edgellm.board.service
author: the authors of edgellm
"""

EXAMPLES = r"""
- name: A new model for the kitchens, one board first, then a quarter at a time
  hosts: kitchens
  gather_facts: false
  serial: [1, "25%"]
  max_fail_percentage: 10
  tasks:
    - name: Deploy
      edgellm.board.deploy:
        bundle: bundles/assistant-rpi5
        service: true

- name: Only what the kitchen's key has signed
  edgellm.board.deploy:
    bundle: bundles/assistant-rpi5
    signed_by: [kitchen.pub]

- name: Not here any more
  edgellm.board.deploy:
    name: assistant
    state: absent
"""

RETURN = r"""
model:
  description: What the model is called on the board.
  returned: always
  type: str
version:
  description: The version's name, the first digits of its manifest's SHA-256.
  returned: when a bundle is deployed
  type: str
previous:
  description: The version that was in use before, null if there was none.
  returned: always
  type: str
sent_bytes:
  description: How much was sent; in check mode, how much would be.
  returned: when a bundle is deployed
  type: int
kept_bytes:
  description: How much was there already.
  returned: when a bundle is deployed, not in check mode
  type: int
seconds:
  description: From the first question to the switch.
  returned: when a bundle is deployed, not in check mode
  type: float
proof:
  description: What the board found when it tried the model, with golden prompts, memory and, with a card, tokens/s.
  returned: when it was tried
  type: dict
in_use:
  description: The version in use afterwards. Also where the task failed after the switch, as a service may.
  returned: once it is switched to
  type: str
service:
  description: The service, null if the model is none.
  returned: not in check mode
  type: dict
healthy:
  description: Whether the service answers from this version.
  returned: not in check mode
  type: bool
error:
  description: What kind of failure it was, such as DiskFullError, UnreachableError, TrustError.
  returned: on failure
  type: str
"""
