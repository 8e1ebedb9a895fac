"""Twenty boards on this machine: an SSH server and a home each, and ways to hurt one."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgellm.bundle import Bundle
from edgellm.signing import generate, load_public
from edgellm.trust import PINNED
from tests.emulated.conftest import SshServer, running_server, start_server
from tests.emulated.small_disk import SmallDisk

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Board:
    """name: in ~/.ssh/config and in the fleet's file; home: as this machine sees it."""

    name: str
    server: SshServer
    disk: SmallDisk | None = None

    @property
    def home(self) -> Path:
        return self.disk.seen_from_here if self.disk else self.server.home

    def version(self, model: str = "tiny") -> str | None:
        """The version that is in use."""
        current = self.home / ".edgellm/models" / model / "current"
        return os.readlink(current) if current.is_symlink() else None

    def files(self) -> dict[str, tuple[int, int]]:
        """Everything on the board by path: size and time of change. A folder is only there; of its lock, not even that,
        for the board takes it whenever it is asked.
        """
        found = {}
        for path in sorted(self.home.rglob("*")):
            status = path.lstat()
            entry = (0, 0) if path.is_dir() and not path.is_symlink() else (status.st_size, status.st_mtime_ns)
            if path.name not in ("lock", "lock.wanted"):
                found[str(path.relative_to(self.home))] = entry
        return found

    def stop(self) -> None:
        """Switches it off."""
        self.server.process.terminate()
        self.server.process.wait()

    def start(self) -> None:
        """Switches it on again, at the same address."""
        self.server.process = start_server(self.server.directory, self.server.port)

    def set_environment(self, values: Mapping[str, str]) -> None:
        """Starts it anew, with these variables for whatever runs there."""
        self.stop()
        words = shlex.join(f"{name}={value}" for name, value in values.items())
        with (self.server.directory / "config").open("a") as config:
            config.write(f'ForceCommand env {words} sh -c "$SSH_ORIGINAL_COMMAND"\n')
        self.start()

    def pin_another_key(self, keys: Path) -> None:
        if not (keys / "other.pub").exists():
            generate(keys / "other", "other")
        other = load_public(str(keys / "other.pub"))
        (self.home / ".edgellm").mkdir(exist_ok=True)
        (self.home / ".edgellm" / PINNED).write_text(other.line)

    def unpin(self) -> None:
        (self.home / ".edgellm" / PINNED).unlink()


@dataclass
class Boards:
    """All of them, and a home for edgellm from which they are reached by name."""

    all: list[Board]
    folder: Path

    def __getitem__(self, index: int) -> Board:
        return self.all[index]

    @property
    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "SSH_", "ANSIBLE_", "EDGELLM_"))}
        return {**clean, "HOME": str(self.folder / "host"), "PYTHONPATH": str(ROOT), "EDGELLM_CACHE": str(self.folder)}

    @property
    def fleet(self) -> Path:
        return self.folder / "kitchens.toml"

    @property
    def inventory(self) -> Path:
        return self.folder / "inventory.yml"

    def edgellm(self, *argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgellm", *argv]
        return subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=400, check=False
        )

    def ansible(self, *argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ansible", *argv]
        environment = {**self.environment, "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=400, check=False
        )

    def versions(self) -> list[str | None]:
        return [board.version() for board in self.all]


@contextlib.contextmanager
def running_boards(folder: Path, n: int, small: tuple[int, ...] = ()) -> Iterator[Boards]:
    """n boards below `folder`; those in `small` have a disk of their own, of 4 MB."""
    with contextlib.ExitStack() as stack:
        boards = Boards([], folder)
        for index in range(n):
            place = folder / f"board{index:02d}"
            (place / "home").mkdir(parents=True)
            disk, config = None, ""
            if index in small:
                disk = stack.enter_context(SmallDisk(place / "home"))
                config = f'ForceCommand {disk.command_prefix} sh -c "$SSH_ORIGINAL_COMMAND"\n'
            boards.all.append(Board(place.name, stack.enter_context(running_server(place, config)), disk))
        write_inventories(boards)
        yield boards


def write_inventories(boards: Boards) -> None:
    """~/.ssh/config, a fleet's file and an Ansible inventory."""
    (boards.folder / "host/.ssh").mkdir(parents=True)
    config, known = "", ""
    for board in boards.all:
        address = board.server.address
        config += (
            f"Host {board.name}\n  HostName 127.0.0.1\n  Port {address.port}\n  User {address.user}\n"
            f"  IdentityFile {address.key_path}\n  IdentitiesOnly yes\n"
        )
        known += address.known_hosts_path.read_text() if address.known_hosts_path else ""
    (boards.folder / "host/.ssh/config").write_text(config)
    (boards.folder / "host/.ssh/known_hosts").write_text(known)
    half = len(boards.all) // 2
    text = ""
    for group, members in (("left", boards.all[:half]), ("right", boards.all[half:])):
        text += f'[groups.{group}]\ntype = "n100"\n[groups.{group}.boards]\n'
        text += "".join(f'{board.name} = "{board.name}"\n' for board in members)
    boards.fleet.write_text(text)
    hosts = ""
    for board in boards.all:
        address = board.server.address
        hosts += (
            f"        {board.name}: {{ansible_host: 127.0.0.1, ansible_port: {address.port}, "
            f"ansible_ssh_private_key_file: {address.key_path}}}\n"
        )
    user = boards[0].server.address.user
    boards.inventory.write_text(
        f"all:\n  vars: {{ansible_user: {user}, edgellm_board: n100}}\n"
        f"  children:\n    kitchens:\n      hosts:\n{hosts}"
    )


def slot(bundle: Bundle) -> str:
    """What a version is called."""
    return bundle.sha256[:16]
