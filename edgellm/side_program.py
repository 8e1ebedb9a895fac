"""edgellm-rt on a board, apart from any model: what measures there, or asks its GPU."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
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
_PASS = """\
if [ -x "$HOME/$1/edgellm-rt" ]; then cd "$HOME/$1"; pwd; echo there; else mktemp -d "$HOME/.edgellm-XXXXXX"; fi
"""
_FINISH = 'cd "$1"; chmod 755 edgellm-rt.part; mv edgellm-rt.part edgellm-rt\n'


def install(remote: Remote, program: Path) -> str:
    """Puts the program into a folder of its own on the board, unless it is there. Returns the folder."""
    folder, is_there = _place(remote, _PREPARE, program)
    if not is_there:
        _send(remote, program, folder)
    return folder


@contextmanager
def brought(remote: Remote, program: Path) -> Iterator[str]:
    """The folder of a program that stays there for the next time."""
    yield install(remote, program)


@contextmanager
def lent(remote: Remote, program: Path) -> Iterator[str]:
    """The same, but afterwards the board is as it was."""
    folder, is_there = _place(remote, _PASS, program)
    try:
        if not is_there:
            _send(remote, program, folder)
        yield folder
    finally:
        if not is_there:
            remote.run(["rm", "-rf", folder])


def _place(remote: Remote, script: str, program: Path) -> tuple[str, bool]:
    """The program's folder there, and whether it is in it."""
    said = remote.script(script, f"{_FOLDER}/{program.parent.name}").text.split("\n")
    if not said[0].startswith("/"):
        raise RemoteError(f"{remote.name}: the board does not say where its home is: {one_line(said[0], 80)}")
    return said[0], "there" in said[1:]


def _send(remote: Remote, program: Path, folder: str) -> None:
    remote.put(program, posixpath.join(folder, f"{PROGRAM}.part"))
    remote.script(_FINISH, folder)
