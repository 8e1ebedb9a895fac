"""edgellm-rt on a board, apart from any model: what measures there, or asks its GPU."""

from __future__ import annotations

import posixpath
from pathlib import Path

from edgellm.errors import RemoteError
from edgellm.remote import Remote
from edgellm.runtime_program import PROGRAM
from edgellm.terminal import one_line

_FOLDER = ".edgellm/agents"
_PREPARE = """\
mkdir -p "$HOME/$1"; cd "$HOME/$1"; pwd
if [ -x edgellm-rt ]; then echo there; fi
find . -name 'edgellm-rpc-*' -mtime +1 -exec rm -rf {} + >/dev/null 2>&1 || true
find .. -mindepth 1 -maxdepth 1 ! -name "${PWD##*/}" -mtime +30 -exec rm -rf {} + >/dev/null 2>&1 || true
"""
"""Says where the program belongs and whether it is there; what one left that lost its power goes after a day, programs
of other versions after a month."""
_FINISH = 'cd "$1"; chmod 755 edgellm-rt.part; mv edgellm-rt.part edgellm-rt\n'


def install(remote: Remote, program: Path) -> str:
    """Puts the program into a folder of its own on the board, unless it is there. Returns the folder."""
    answer = remote.script(_PREPARE, f"{_FOLDER}/{program.parent.name}").text.split("\n")
    folder = answer[0]
    if not folder.startswith("/"):
        raise RemoteError(f"{remote.name}: the board does not say where its home is: {one_line(folder, 80)}")
    if "there" not in answer[1:]:
        remote.put(program, posixpath.join(folder, f"{PROGRAM}.part"))
        remote.script(_FINISH, folder)
    return folder
