"""Taking an application off a board: its service, its versions, its records; its configuration only on demand."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

from edgellm import application, service
from edgellm.app_install import STOP
from edgellm.board_session import root_of
from edgellm.errors import CommandError, UsageError
from edgellm.remote import Remote
from edgellm.unit import unit_name

_REMOVE = r"""
cd "$1" 2>/dev/null || exit 0
echo "before=$(du -sk . | cut -f1)"
for old in */; do
    old=${old%/}
    if [ "$old" != current ] && [ -d "$old" ]; then echo "version=$old"; fi
done
if [ -s config.toml ]; then echo "config=yes"; fi
if [ -s config.toml ] && [ "$2" != purge ]; then
    find . -mindepth 1 -maxdepth 1 ! -name config.toml -exec rm -rf {} +
    echo "after=$(du -sk . | cut -f1)"
else
    cd /
    rm -rf "$1"
    rmdir "$(dirname "$1")" 2>/dev/null || true
    echo "after=0"
fi
sync
"""


@dataclass(frozen=True)
class Removed:
    """service: the kind that was stopped, or None; config: "kept", "removed", or None if there was none."""

    name: str
    service: str | None
    versions: tuple[str, ...]
    freed_bytes: int
    config: str | None

    @property
    def anything(self) -> bool:
        return bool(self.service or self.versions or self.freed_bytes or self.config == "removed")


def name_of(text: str) -> str:
    """An application's name, from it or from its folder. Raises UsageError."""
    if (Path(text) / application.MANIFEST).is_file():
        return application.read(Path(text)).name
    if not application.NAME.fullmatch(text):
        raise UsageError(f"--app {text}: neither an application's name, such as voice_assistant, nor its folder")
    return text


def remove(remote: Remote, home: str, name: str, purge: bool) -> Removed:
    """Stops the application and removes it; what is not there is no error. purge: its configuration, too.

    Raises UnsuitableError where its unit cannot be removed; nothing was removed then.
    """
    folder = posixpath.join(root_of(home), "apps", name)
    board = service.look(remote, home, f"app-{name}")
    kind = None
    if "unit" in board.values:
        service.remove_unit(remote, board, f"app-{name}")
        kind = "systemd"
    if "in_crontab" in board.values:
        remote.script(service.AT_BOOT, unit_name(f"app-{name}"), "")
        kind = kind or "supervised"
    if remote.run(["test", "-s", posixpath.join(folder, "pid")]).status == 0:
        remote.script(STOP, folder)
        kind = kind or "supervised"
    values: dict[str, list[str]] = {}
    for line in remote.script(_REMOVE, folder, "purge" if purge else "keep", silence_s=300).text.splitlines():
        key, _, value = line.partition("=")
        values.setdefault(key, []).append(value)
    versions = tuple(one for one in values.get("version", []) if re.fullmatch(r"[0-9a-f]{16}", one))
    config = None if "config" not in values else "removed" if purge else "kept"
    try:
        freed = sum(int(one) for one in values.get("before", [])) - sum(int(one) for one in values.get("after", []))
    except ValueError as error:
        raise CommandError(f"{remote.name}: its `du` does not say how much there is", 1) from error
    return Removed(name, kind, versions, max(0, freed) << 10, config)
