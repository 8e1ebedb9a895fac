"""edgellm-rt on a board: where it lies, how it is called, and what its failures mean."""

from __future__ import annotations

import contextlib
import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.errors import BoardError, CommandError, EdgeError, RemoteError, RuntimeFailedError, UnsuitableError
from edgellm.remote import Process, Remote
from edgellm.terminal import one_line

PROGRAM = "edgellm-rt"
_NAMED = re.compile(r"^edgellm-rt: ([A-Z][A-Z_]*): (.*)$", re.MULTILINE)
_LINE_BYTES = 65536
_FIND = r"""
echo "home $HOME"
cd "$HOME/.edgellm/models" 2>/dev/null || exit 0
if [ -e ../trusted_keys ]; then echo "installed $HOME/.edgellm/edgellm-rt"; fi
for folder in */; do
    folder=${folder%/}
    if [ -f "$folder/current/manifest.json" ]; then echo "model $folder"; fi
done
"""


@dataclass(frozen=True)
class InstalledModel:
    """A model that was deployed. path: its slot in use, absolute on the board.

    program: None for the slot's own edgellm-rt; where keys are pinned the one that lies outside the slots, because a
    program that came with a bundle cannot be the judge of it.
    """

    remote: Remote
    name: str
    path: str
    program: str | None = None

    def argv(self, command: str, *arguments: str) -> list[str]:
        if self.program is not None:
            return [self.program, command, self.path, *arguments]
        return runtime_argv(self.path, command, *arguments)


def runtime_argv(slot: str, command: str, *arguments: str) -> list[str]:
    """The command line that runs a slot's own edgellm-rt on that slot."""
    return [posixpath.join(slot, PROGRAM), command, slot, *arguments]


def find_model(remote: Remote, name: str | None = None, preferred: str | None = None) -> InstalledModel:
    """The model called `name` on the board; without a name the `preferred` one, or the only one there is.

    Raises BoardError if it is not there, or several are and none was named.
    """
    home, names, program = "", [], None
    for line in remote.script(_FIND).text.splitlines():
        key, _, value = line.partition(" ")
        if key == "home":
            home = value
        elif key == "model":
            names.append(value)
        elif key == "installed":
            program = value
    if name is None:
        name = preferred if preferred in names else names[0] if len(names) == 1 else None
    if name is None and names:
        raise BoardError(f"{remote.name} has several models; add --model and one of: {', '.join(map(one_line, names))}")
    if name is None:
        raise BoardError(f"{remote.name} has no model yet; send one with `edgellm deploy MODEL --board …`")
    if name not in names:
        there = f"it has: {', '.join(map(one_line, names))}" if names else "it has none yet"
        raise BoardError(f"{remote.name} has no model called {name}; {there}")
    return InstalledModel(remote, name, posixpath.join(home, ".edgellm", "models", name, "current"), program)


def failure(remote: Remote, what: str, status: int, stderr: str) -> Exception:
    """The error for an edgellm-rt that ended with `status`: its own name and text, or what the shell says."""
    named = _NAMED.findall(stderr)
    if named:
        status_name, text = named[-1]
        if "there is no command" in text:
            text += "; the program there is older than this edgellm: deploy the model again"
        return RuntimeFailedError(f"{remote.name}: {what}: {one_line(text)} ({status_name})", status_name, status)
    if status in (126, 127):
        return UnsuitableError(
            f"{remote.name}: edgellm-rt does not start there ({one_line(stderr)}); the board's C library or CPU is not "
            "what the bundle was built for"
        )
    if status < 0 or status > 128:
        return CommandError(f"{remote.name}: {what}: the program was killed; the board may be out of memory", status)
    return remote.failure(what, status, stderr)


def announced(remote: Remote, process: Process, what: str) -> dict[str, Any]:
    """What a program that listens says first: one line of JSON with its `port`. Raises what `failure` makes of an end
    before that, and RemoteError if the line says something else.
    """
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_BYTES:
        piece = process.read(1)
        if not piece:
            raise failure(remote, what, process.wait(), process.errors())
        line += piece
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    port = said.get("port") if isinstance(said, dict) else None
    if type(port) is not int or not 0 < port < 65536:
        text = one_line(line.decode("utf-8", "replace"), 80)
        raise RemoteError(f"{remote.name}: {what} does not say where it listens: {text}")
    return dict(said)


def ended(process: Process, patience_s: float) -> None:
    """Ends a program that listens by ending its input, and waits for it; a board that is gone is let go."""
    with contextlib.suppress(EdgeError, BrokenPipeError, TimeoutError):
        process.close_input()
        while process.read(_LINE_BYTES, timeout_s=patience_s):
            pass
        process.wait()


def run_json(remote: Remote, argv: Sequence[str], what: str, silence_s: float = 600.0) -> dict[str, Any]:
    """Runs edgellm-rt with --json and returns its answer, a JSON object. Raises RuntimeFailedError or CommandError."""
    result = remote.run([*argv, "--json"], silence_s=silence_s)
    if result.status != 0:
        raise failure(remote, what, result.status, result.stderr)
    try:
        answer = json.loads(result.text)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{remote.name}: {what}: the answer is not JSON: {one_line(result.text, 120)}") from error
    if not isinstance(answer, dict):
        raise CommandError(f"{remote.name}: {what}: the answer is not a JSON object: {one_line(result.text, 120)}")
    return answer
