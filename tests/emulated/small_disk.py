"""This machine with a small disk of its own as its home."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgellm.local_remote import LocalRemote
from edgellm.remote import Process


class SmallDisk(LocalRemote):
    """Commands run in a mount name space in which `home` is a disk of `n_bytes`."""

    def __init__(self, home: Path, n_bytes: int = 4 << 20) -> None:
        super().__init__("small", {"HOME": str(home)})
        self._home = home
        script = f'mount -t tmpfs -o size={n_bytes} tmpfs "$HOME" && echo mounted && exec sleep 6000'
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
        environment = {**os.environ, "HOME": str(home)}
        self._holder = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert self._holder.stdout
        assert self._holder.stdout.readline() == b"mounted\n"
        self._prefix = ["nsenter", "-t", str(self._holder.pid), "--user", "--mount", "--preserve-credentials", "--"]

    @property
    def command_prefix(self) -> str:
        """What makes a command of a shell run where the disk is."""
        return " ".join(self._prefix)

    @property
    def seen_from_here(self) -> Path:
        """The disk by way of a process that has it."""
        return Path(f"/proc/{self._holder.pid}/root{self._home}")

    def leave(self, n_bytes: int) -> None:
        """Makes the disk so large that n_bytes are free."""
        used = int(self.script('df -Pk "$HOME" | { read -r h; read -r a b used d; echo "$used"; }').text)
        self.script(f'mount -o remount,size={(used << 10) + n_bytes} "$HOME"')

    def start(self, argv: Sequence[str], *, silence_s: float = 60.0) -> Process:
        return super().start([*self._prefix, *argv], silence_s=silence_s)

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()
