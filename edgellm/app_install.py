"""An application on a board: sent beside the models, tried there, switched to, and kept running.

It lies in ~/.edgellm/apps/NAME: a folder per version, `current`, and the board's own config.toml, which is written
once and then only on demand. A version is switched to after it has opened everything that its configuration names.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgellm import app_unit, application, service
from edgellm.application import Application, BoardPython
from edgellm.board_session import root_of
from edgellm.errors import CommandError, UnsuitableError
from edgellm.probe import Facts
from edgellm.remote import FileToSend, Progress, Remote
from edgellm.terminal import one_line, size
from edgellm.unit import unit_name

_LOOK = r"""
if command -v python3 >/dev/null 2>&1; then
    python3 -c 'import sys, platform
print("python", *sys.version_info[:2])
print("glibc", platform.libc_ver()[1] or "none")'
fi
for name in "$@"; do command -v "$name" >/dev/null 2>&1 || echo "lacks $name"; done
"""
_PREPARE = r"""
mkdir -p "$1"; cd "$1"; rm -rf part
if [ -d "$2" ]; then echo there; else mkdir part; fi
"""
_CHECK_SUMS = r"""
cd "$1/part"; sha256sum -c -s sums 2>/dev/null || sha256sum --status -c sums || {
    echo "files are damaged" >&2
    exit 1
}
cd ..; mv part "$2"; sync
"""
_TRY = r"""
cd "$1"; if [ -s new.toml ]; then config=new.toml; else config=config.toml; fi
"./$2/run" --check "$1/$config"
"""
_SWITCH = r"""
cd "$1"
if [ -s new.toml ]; then mv new.toml config.toml; fi
ln -sfn "$2" next; mv -fT next current 2>/dev/null || { rm -f current; mv next current; }
for old in */; do old=${old%/}; case $old in "$2" | current) ;; *) rm -rf "./$old" ;; esac; done
sync
"""
_KEEP = r"""#!/bin/sh
# Keeps the application running where there is no systemd. $1: its folder.
while :; do
    if [ "$(wc -c <"$1/log" 2>/dev/null || echo 0)" -gt 1000000 ]; then mv "$1/log" "$1/log.1"; fi
    "$1/current/run" "$1/config.toml" >>"$1/log" 2>&1
    sleep 5
done
"""
STOP = r"""
cd "$1" 2>/dev/null || exit 0
if [ -s pid ] && grep -q keep "/proc/$(cat pid)/cmdline" 2>/dev/null; then kill -- "-$(cat pid)" || true; fi
rm -f pid
"""
_START = r"""
cd "$1"
setsid sh "$1/current/keep" "$1" </dev/null >/dev/null 2>&1 &
echo $! >pid
sleep 1
kill -0 "$(cat pid)"
"""
_TRY_S = 900.0


@dataclass(frozen=True)
class Installed:
    """sent_bytes: 0 if this version was there; kind: of service, "systemd" or "supervised"."""

    name: str
    version: str
    sent_bytes: int
    python: str
    kind: str


def look(remote: Remote, facts: Facts, app: Application) -> BoardPython:
    """What the board runs Python with. Raises UnsuitableError if it cannot run the application."""
    values: dict[str, list[str]] = {"lacks": []}
    for line in remote.script(_LOOK, *app.programs).text.splitlines():
        key, _, value = line.partition(" ")
        values.setdefault(key, []).append(value)
    lacks = tuple(name for name in values["lacks"] if name in app.programs)
    found = re.fullmatch(r"3 (\d+)", "".join(values.get("python", [])))
    if not found:
        raise UnsuitableError(
            f"python3 is missing on {remote.name}, and {app.name} needs it: install it there (Debian, Raspberry Pi OS: "
            "sudo apt-get install python3), then try again; models do not need it"
        )
    version = (3, int(found[1]))
    if version < app.python:
        raise UnsuitableError(
            f"{remote.name} has Python 3.{version[1]}, and {app.name} needs 3.{app.python[1]} or newer"
        )
    glibc = re.match(r"(\d+)\.(\d+)", "".join(values.get("glibc", [])))
    if not glibc:
        raise UnsuitableError(
            f"{remote.name} has a C library that wheels are not made for (no glibc); use Debian there"
        )
    return BoardPython(facts.arch, version, (int(glibc[1]), int(glibc[2])), lacks)


def install(
    remote: Remote,
    facts: Facts,
    app: Application,
    config: Path | None,
    model: str,
    tell: Callable[[str], None],
    progress: Progress | None = None,
) -> Installed:
    """Sends, tries, switches and starts. What was there before runs until the new version has opened its engines.

    config: for the board instead of its own, or of the example where it has none.
    """
    board = look(remote, facts, app)
    files = application.collect(app, board, tell)
    folder = posixpath.join(root_of(facts.home), "apps", app.name)
    with TemporaryDirectory(prefix="app-") as name:
        files = [*files, *_scripts(Path(name), app, files)]
        version = application.digest(files)
        sent = _send(remote, facts, folder, version, files, Path(name), tell, progress)
    _send_config(remote, folder, config or app.folder / app.config, replace=config is not None)
    tell("trying it on the board")
    tried = remote.run(["sh", "-c", "set -e\n" + _TRY, "edgellm", folder, version], silence_s=_TRY_S)
    if tried.status != 0:
        raise CommandError(
            f"{remote.name}: {app.name} does not work there: {one_line(tried.stderr, 300) or 'no message'}; what was "
            "there before goes on",
            tried.status,
        )
    tell("switching")
    kind = _restart(remote, facts.home, folder, version, app, model)
    return Installed(app.name, version, sent, f"{board.version[0]}.{board.version[1]}", kind)


def _scripts(folder: Path, app: Application, files: list[FileToSend]) -> list[FileToSend]:
    """`run`, which knows where everything is, and `keep`."""
    libraries = sorted({posixpath.dirname(f.name) for f in files if re.search(r"^root/.*/lib[^/]*\.so", f.name)})
    lines = ["#!/bin/sh", 'here=$(cd "$(dirname "$0")" && pwd -P)', "export PYTHONDONTWRITEBYTECODE=1"]
    lines.append('export PYTHONPATH="$here/site:$here/app"')
    if any(file.name.startswith("root/") for file in files):
        paths = ":".join(f"$here/{library}" for library in libraries)
        lines.append('export PATH="$PATH:$here/root/usr/bin:$here/root/bin"')
        lines.append(f'export LD_LIBRARY_PATH="{paths}"')
        lines.append('[ -e /usr/share/alsa/alsa.conf ] || export ALSA_CONFIG_DIR="$here/root/usr/share/alsa"')
    lines.append(f'exec python3 -m {shlex.quote(app.module)} "$@"')
    made = []
    for name, text in (("run", "\n".join(lines) + "\n"), ("keep", _KEEP)):
        (folder / name).write_text(text)
        made.append(FileToSend(folder / name, name, executable=True))
    return made


def _send(
    remote: Remote,
    facts: Facts,
    folder: str,
    version: str,
    files: list[FileToSend],
    scratch: Path,
    tell: Callable[[str], None],
    progress: Progress | None,
) -> int:
    """Sends a version unless it is there; how many bytes that were. Half a version is never seen."""
    if "there" in remote.script(_PREPARE, folder, version).text.split():
        return 0
    n_bytes = sum(file.local.stat().st_size for file in files)
    if n_bytes > facts.disk_free_bytes:
        raise UnsuitableError(
            f"{remote.name} has {size(facts.disk_free_bytes)} of disk free, and this takes {size(n_bytes)}; make room"
        )
    tell(f"sending {size(n_bytes)}")
    sums = scratch / "sums"
    sums.write_text("".join(f"{application.sha256(file.local)}  {file.name}\n" for file in files))
    remote.put_all([*files, FileToSend(sums, "sums")], posixpath.join(folder, "part"), progress=progress)
    remote.script(_CHECK_SUMS, folder, version, silence_s=300)
    return n_bytes


def _send_config(remote: Remote, folder: str, config: Path, replace: bool) -> None:
    new, there = posixpath.join(folder, "new.toml"), posixpath.join(folder, "config.toml")
    has = remote.run(["test", "-s", there]).status == 0
    if replace or not has:
        remote.put(config, new)
    else:
        remote.script('rm -f "$1"', new)


def _restart(remote: Remote, home: str, folder: str, version: str, app: Application, model: str) -> str:
    board = service.look(remote, home, f"app-{app.name}")
    remote.script(STOP, folder)
    remote.script(_SWITCH, folder, version)
    if board.can_systemd:
        unit = app_unit.unit_text(folder, app, board.values.get("user", ""), model)
        argv = ["sh", "-c", "set -e\n" + service.INSTALL_UNIT, "edgellm", board.root, unit_name(f"app-{app.name}")]
        result = remote.run(argv, stdin=unit.encode(), silence_s=_TRY_S)
        if result.status != 0:
            raise CommandError(
                f"{remote.name}: the service does not start: {one_line(result.stderr, 300)}", result.status
            )
        return "systemd"
    remote.script(_START, folder)
    if "cron" in board.values:
        command = f"setsid sh {shlex.quote(folder + '/current/keep')} {shlex.quote(folder)}"
        with contextlib.suppress(CommandError):  # a crontab that may not be used
            remote.script(service.AT_BOOT, unit_name(f"app-{app.name}"), command)
    return "supervised"
