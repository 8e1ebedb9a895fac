"""A model on a board as a service: it starts when the board does, is started again when it fails, and is restarted when
another version is switched to.

With systemd and the right to use it (root, or sudo without a password) it is a hardened unit (edgellm.unit); else it is
kept by `edgellm-rt supervise`, and starts with the board where there is cron.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from typing import Any

from edgellm import serving
from edgellm.board_session import root_of
from edgellm.errors import CommandError, UnsuitableError
from edgellm.remote import Remote, shell_argv
from edgellm.runtime_program import InstalledModel
from edgellm.service_options import Wanted, read_options
from edgellm.terminal import one_line
from edgellm.unit import UnitOptions, memory_max_bytes, unit_name, unit_text

_FIND = r"""
echo "user=$(id -un)"
if [ "$(id -u)" = 0 ]; then echo "root=yes"; elif sudo -n true 2>/dev/null; then echo "root=sudo"; fi
if [ -d /run/systemd/system ]; then echo "systemd=yes"; fi
if command -v crontab >/dev/null 2>&1; then
    echo "cron=yes"
    if at_boot=$(crontab -l 2>/dev/null | grep -m1 -F "# $2"); then
        echo "in_crontab=$at_boot"
        if pidof cron >/dev/null 2>&1 || pidof crond >/dev/null 2>&1; then echo "at_boot=yes"; fi
    fi
fi
unit="/etc/systemd/system/$2"
if [ -f "$unit" ]; then
    echo "unit=$(grep -m1 '^ExecStart=' "$unit")"
    what=ActiveState,SubState,NRestarts,UnitFileState
    # without D-Bus only root is answered
    systemctl show -p "$what" "$2" 2>/dev/null || sudo -n systemctl show -p "$what" "$2" 2>/dev/null || true
fi
if [ -f "$1/weights.key" ]; then echo "key=yes"; fi
if [ -n "$(find -L "$1/edgellm-rt" "$1/models/$3/current" ! -perm -004 2>/dev/null)" ]; then echo "private=yes"; fi
"""
"""About the root $1, the unit $2 and the model $3: lines KEY=VALUE."""

_AS_ROOT = r"""
as_root() { if [ "$1" = sudo ]; then shift; sudo -n "$@"; else shift; "$@"; fi; }
"""
INSTALL_UNIT = (
    _AS_ROOT
    + r"""
unit="/etc/systemd/system/$2"
cat >"$HOME/.edgellm/unit.new"
as_root "$1" install -m 644 -o root -g root "$HOME/.edgellm/unit.new" "$unit"
rm -f "$HOME/.edgellm/unit.new"
as_root "$1" systemctl daemon-reload
as_root "$1" systemctl enable "$2"
as_root "$1" systemctl restart "$2" || {
    as_root "$1" journalctl -u "$2" -n 3 --no-pager -o cat >&2
    exit 1
}
"""
)
_RESTART = _AS_ROOT + 'as_root "$1" systemctl restart "$2"\n'
_REMOVE = (
    _AS_ROOT
    + r"""
as_root "$1" systemctl disable --now "$2"
as_root "$1" rm -rf "/var/lib/private/edgellm/${3:?}" "/var/lib/edgellm/${3:?}" # kept; `systemctl clean` wants D-Bus
as_root "$1" rm -f "/etc/systemd/system/$2"
as_root "$1" systemctl daemon-reload
"""
)
AT_BOOT = r"""
{ crontab -l 2>/dev/null | grep -vF "# $1" || true; if [ -n "$2" ]; then echo "@reboot $2 # $1"; fi; } | crontab -
"""
_SERVE_S = 1000.0


@dataclass(frozen=True)
class Service:
    """kind: "systemd" or "supervised". starts_at_boot: None where nobody knows. state: the manager's word for it."""

    kind: str
    running: bool
    state: str
    port: int | None
    starts_at_boot: bool
    restarts: int = 0


@dataclass(frozen=True)
class Board:
    """What the board says: values by key."""

    values: dict[str, str]

    @property
    def root(self) -> str:
        return self.values.get("root", "")

    @property
    def can_systemd(self) -> bool:
        return "systemd" in self.values and bool(self.root)


def look(remote: Remote, home: str, model: str) -> Board:
    """What the board has to keep services with, and what it has of this model's."""
    values: dict[str, str] = {}
    for line in remote.script(_FIND, root_of(home), unit_name(model), model).text.splitlines():
        key, _, value = line.partition("=")
        values[key] = value
    return Board(values)


def find(remote: Remote, home: str, model: str) -> Service | None:
    """The service of a model on a board; None if it has none."""
    return _find(remote, home, model, look(remote, home, model))


def _find(remote: Remote, home: str, model: str, board: Board) -> Service | None:
    if "unit" in board.values:
        port = re.search(r"--port (\d{1,5})(?: |$)", board.values["unit"])
        state = one_line(f"{board.values.get('ActiveState', '?')} ({board.values.get('SubState', '?')})", 60)
        restarts = board.values.get("NRestarts", "0")
        return Service(
            "systemd",
            board.values.get("ActiveState") == "active",
            state,
            int(port[1]) if port else None,
            board.values.get("UnitFileState") == "enabled",
            int(restarts) if restarts.isdigit() else 0,
        )
    found = serving.status(remote, home, model)
    at_boot = "at_boot" in board.values
    if not found.running and "in_crontab" not in board.values:
        return None
    return Service("supervised", found.running, found.state, found.port, at_boot, max(found.starts - 1, 0))


def install(model: InstalledModel, home: str, wanted: Wanted) -> Service:
    """Makes the model a service and starts it. An earlier one of the same model is replaced."""
    remote = model.remote
    board = look(remote, home, model.name)
    if "systemd" in board.values and not board.root and "cron" not in board.values:
        raise UnsuitableError(
            f"{remote.name}: a service needs root there: log in as root, or let {board.values.get('user')} use sudo "
            "without a password"
        )
    if not board.can_systemd:
        _make_room(model, home, board)
        return _install_supervised(model, home, wanted, board)
    unit = _unit(model, home, wanted, board)
    _make_room(model, home, board)
    argv = shell_argv("set -e\n" + INSTALL_UNIT, board.root, unit_name(model.name))
    result = remote.run(argv, stdin=unit.encode(), silence_s=_SERVE_S)
    if result.status != 0:
        why = one_line(result.stderr, 300) or "no message"
        raise CommandError(
            f"{remote.name}: the service does not start, and systemd keeps trying: {why}; `edgellm service remove` "
            "ends that",
            result.status,
        )
    found = find(remote, home, model.name)
    assert found is not None
    return found


def _unit(model: InstalledModel, home: str, wanted: Wanted, board: Board) -> str:
    return unit_text(
        UnitOptions(
            home,
            board.values.get("user", ""),
            model.name,
            wanted.port,
            wanted.options,
            memory_max_bytes(_manifest(model), wanted.sessions, wanted.context),
            own_user="private" not in board.values,
            has_key="key" in board.values,
            keep=wanted.keep,
        )
    )


def _arguments(model: InstalledModel, home: str, wanted: Wanted) -> list[str]:
    """Those of a server that edgellm-rt itself keeps running."""
    kept = ["--keep", _kept(home, model.name)] if wanted.keep else []
    return ["--port", str(wanted.port), *wanted.options, *kept]


def _kept(home: str, model: str) -> str:
    return f"{root_of(home)}/serve/{model}/kept"


def as_wanted(model: InstalledModel, home: str, wanted: Wanted) -> Service | None:
    """The model's service if it runs and is what `install` would make of it, else None."""
    board = look(model.remote, home, model.name)
    found = _find(model.remote, home, model.name, board)
    if found is None or not found.running:
        return None
    if found.kind == "systemd":
        unit = _unit(model, home, wanted, board).encode()
        there = model.remote.run(["cat", f"/etc/systemd/system/{unit_name(model.name)}"]).stdout
        return found if there == unit and found.starts_at_boot else None
    if board.can_systemd:
        return None
    return found if _running(model.remote, home, model.name) == _arguments(model, home, wanted) else None


def made_with(remote: Remote, home: str, model: str) -> Wanted | None:
    """What the model's service, running or not, was made with; None if it has none. Raises CommandError."""
    board = look(remote, home, model)
    if "unit" in board.values:
        words = board.values["unit"].split()[3:]  # ExecStart=PROGRAM serve FOLDER
    elif not (words := _running(remote, home, model)):
        if "in_crontab" not in board.values:
            return None
        words = board.values["in_crontab"].rpartition(" # ")[0].split()[6:]  # @reboot PROGRAM supervise … start FOLDER
    return read_options(words, remote.name)


def _running(remote: Remote, home: str, model: str) -> list[str]:
    """The options of the server that edgellm-rt keeps running; empty if it runs none."""
    pid = serving.status(remote, home, model).pid
    if pid is None:
        return []
    words = remote.run(["cat", f"/proc/{pid}/cmdline"]).text.rstrip("\0").split("\0")
    return words[words.index("serve") + 2 :] if "serve" in words else []  # an emulator may come first


def _make_room(model: InstalledModel, home: str, board: Board) -> None:
    """Ends what serves the model now and would start with the board, by whatever means it was begun."""
    if serving.status(model.remote, home, model.name).running:
        serving.stop(model.remote, home, model.name)
    if "in_crontab" in board.values:
        model.remote.script(AT_BOOT, unit_name(model.name), "")


def _install_supervised(model: InstalledModel, home: str, wanted: Wanted, board: Board) -> Service:
    arguments = _arguments(model, home, wanted)
    serving.start(model, home, arguments)
    if "cron" in board.values:
        words = serving.supervisor_argv(home, model.name, "start", model.path, *arguments)
        command = " ".join(words)
        if all(re.fullmatch(r"[A-Za-z0-9/._@+=:,-]+", word) for word in words):  # cron has ideas about % and quotes
            with contextlib.suppress(CommandError):  # a crontab that may not be used: the report says how it is then
                model.remote.script(AT_BOOT, unit_name(model.name), command)
    found = find(model.remote, home, model.name)
    assert found is not None
    return found


def restart(remote: Remote, home: str, model: str) -> Service | None:
    """Restarts a model's service, as after another version was switched to; None if it has none."""
    board = look(remote, home, model)
    found = _find(remote, home, model, board)
    if found is None:
        return None
    if found.kind == "systemd":
        if not board.root:
            raise UnsuitableError(
                f"{remote.name}: the version in use was switched, but {model}'s service answers from the one before: "
                f"restarting it needs root; on the board: sudo systemctl restart {unit_name(model)}"
            )
        remote.script(_RESTART, board.root, unit_name(model), silence_s=_SERVE_S)
    elif found.running:
        serving.restart(remote, home, model)
    return find(remote, home, model)


def remove(remote: Remote, home: str, model: str) -> bool:
    """Stops a model's service and takes it away. False if it has none."""
    board = look(remote, home, model)
    found = _find(remote, home, model, board)
    if found is None:
        return False
    if "in_crontab" in board.values:
        remote.script(AT_BOOT, unit_name(model), "")
    if found.kind == "systemd":
        remove_unit(remote, board, model)
    else:
        serving.stop(remote, home, model)
        remote.run(["rm", "-rf", "--", _kept(home, model)])
    return True


def remove_unit(remote: Remote, board: Board, name: str) -> None:
    """Stops the unit of a model, or of "app-" and an application, and takes it away."""
    if not board.root:
        raise UnsuitableError(f"{remote.name}: removing the service needs root or sudo without a password there")
    remote.script(_REMOVE, board.root, unit_name(name), name, silence_s=120)


def _manifest(model: InstalledModel) -> dict[str, Any]:
    result = model.remote.run(["cat", f"{model.path}/manifest.json"], limit_bytes=8 << 20)
    try:
        manifest = json.loads(result.stdout)
        if isinstance(manifest, dict):
            return manifest
    except (ValueError, RecursionError):
        pass
    raise CommandError(f"{model.remote.name}: {model.name} has no manifest.json that can be read; deploy it again")
