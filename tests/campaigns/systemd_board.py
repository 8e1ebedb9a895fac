"""The full-system board with systemd as its first process, and sudo, as on Raspberry Pi OS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgellm import cache, virtual, virtual_parts
from edgellm.ssh import SshRemote
from tests.campaigns.full_board import FullBoard

TYPE = "rpi5"
NAME = "full-board"
BOOT_S = 300.0

_PACKAGES = (
    *("systemd", "sudo", "mount", "coreutils", "libpam-modules", "libpam-modules-bin", "libgcc-s1"),
    # what they are linked with, beside what sshd is
    *("libacl1", "libapparmor1", "libargon2-1", "libblkid1", "libcryptsetup12", "libdevmapper1.02.1", "libfdisk1"),
    *("libffi8", "libip4tc2", "libjson-c5", "libkmod2", "libmount1", "libp11-kit0", "libseccomp2", "libsmartcols1"),
    *("libsystemd-shared", "libudev1", "libuuid1", "libdb5.3", "libgdbm6", "libattr1", "libgmp10"),
)
# They need udev, D-Bus, a console or the Internet, which this board has not.
_MASKED = (
    *("getty.target", "systemd-logind.service", "systemd-networkd.service", "systemd-timesyncd.service"),
    *("systemd-resolved.service", "systemd-modules-load.service"),
)
_UNITS = {
    "board.service": """\
[Unit]
DefaultDependencies=no
Before=basic.target ssh.service
After=local-fs.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/busybox ifconfig lo 127.0.0.1
ExecStart=/bin/busybox ifconfig eth0 10.0.2.15 netmask 255.255.255.0
ExecStart=/bin/busybox chown -R 1000:1000 /home/pi
""",
    "ssh.service": """\
[Service]
RuntimeDirectory=sshd
ExecStart=/usr/sbin/sshd -D -e -f /etc/ssh/board/sshd_config
""",
}
_FILES = {
    "etc/hostname": f"{NAME}\n",
    "etc/hosts": f"127.0.0.1 localhost {NAME}\n",
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/fstab": "",
    "etc/pam.d/sudo": "".join(f"{kind} required pam_permit.so\n" for kind in ("auth", "account", "session")),
}


class SystemdBoard(FullBoard):
    """What tests.campaigns.service asks of a machine. Must be made by root: sudo on the board has to be root's."""

    patience = 10
    has_memory_to_itself = True
    disk_mb = 384

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, self.disk_mb)
        ssh = folder / "user/.ssh"
        ssh.mkdir(parents=True, exist_ok=True)
        keys = f"IdentityFile {self.address.key_path}\nUserKnownHostsFile {self.address.known_hosts_path}\n"
        (ssh / "config").write_text(f"Host 127.0.0.1\n{keys}")
        self._environment = {**os.environ, "HOME": str(folder / "user"), "EDGELLM_CACHE": str(cache.root())}
        for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            self._environment.pop(name, None)
        self._edgellm("boards", "add", NAME, TYPE, f"{virtual.USER}@127.0.0.1:{self.port}", "--replace")

    def _fill(self, tree: Path) -> None:
        parts = cache.root() / "virtual" / "parts"
        what = "fetching systemd for the full-system board"
        more = virtual_parts.ensure_packages(
            parts, "systemd-arm64", _PACKAGES, what, lambda what, share: None, arch="arm64"
        )
        subprocess.run(["cp", "-a", "--remove-destination", f"{more}/.", str(tree)], check=True)
        for name, text in _FILES.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        rights = tree / "etc/sudoers"
        rights.unlink(missing_ok=True)
        rights.write_text(f"root ALL=(ALL) ALL\n{virtual.USER} ALL=(ALL) NOPASSWD: ALL\n")
        rights.chmod(0o440)
        units = tree / "etc/systemd/system"
        wanted = units / "multi-user.target.wants"
        wanted.mkdir(parents=True, exist_ok=True)
        for name, text in _UNITS.items():
            (units / name).write_text(text)
            (wanted / name).symlink_to(f"../{name}")
        for name in _MASKED:
            (units / name).symlink_to("/dev/null")
        (units / "default.target").unlink(missing_ok=True)
        (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
        (tree / "sbin/board-init").symlink_to("/lib/systemd/systemd")
        subprocess.run(["chown", "-R", "-h", "0:0", str(tree)], check=True)
        (tree / "usr/bin/sudo").chmod(0o4755)  # chown takes it away

    def boot(self) -> float:
        """Starts it and waits until systemd says that it runs; returns the seconds that took."""
        began = time.monotonic()
        self.start()
        while time.monotonic() - began < BOOT_S:
            if self.run("systemctl is-system-running 2>/dev/null", check=False).strip() == "running":
                return time.monotonic() - began
            time.sleep(0.5)
        raise SystemExit(f"systemd does not come up: {self.run('systemctl --failed --no-pager', check=False)}")

    def run(self, script: str, check: bool = True) -> str:
        """As root, by sudo."""
        with SshRemote(self.address) as remote:
            done = remote.run(["sudo", "-n", "sh", "-c", script], silence_s=BOOT_S)
        if check and done.status != 0:
            raise SystemExit(f"{script}: {done.text}{done.stderr}")
        return done.text

    def edgellm(self, *arguments: str) -> dict[str, Any]:
        """A command with --json, as a user types it on the host."""
        answer: dict[str, Any] = json.loads(self._edgellm(*arguments, "--board", NAME, "--json"))
        return answer

    def _edgellm(self, *arguments: str) -> str:
        argv = [sys.executable, "-m", "edgellm", *arguments]
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"edgellm {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def power_off(self) -> None:
        self.kill()

    remove = power_off
