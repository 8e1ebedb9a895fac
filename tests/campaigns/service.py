"""A served model under systemd, on a board or here.

    sudo python -m tests.campaigns.service            # the full-system board (tests.campaigns.systemd_board)
    sudo python -m tests.campaigns.service BUNDLE     # this machine

On the board, the voice assistant's model is compiled for it. BUNDLE is one for this machine (`edgellm compile MODEL
--board local -o BUNDLE`), whose own systemd is booted a second time, as process 1 of new namespaces over an overlay of
the root folder; what it writes goes to a temporary folder. Either way the bundle is deployed as a service, by the
commands a user types, and then: its rights are looked at, it is killed, it is stopped in its tracks until the watchdog
notices, the power fails, sessions outlive it, and the service is removed; on the board, its neighbours use up the
memory, too. Prints one line per observation; the first wrong one ends it with 1.

Needs root; here also systemd, util-linux and a unified cgroup hierarchy (its controllers may be in use elsewhere: then
MemoryMax is set but not enforced).
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from edgellm.errors import EdgeError
from tests.campaigns.full_board import missing
from tests.campaigns.systemd_board import SystemdBoard
from tests.server import MODEL

SYSTEMD = "/lib/systemd/systemd"
NAME = "assistant"
UNIT = f"edgellm-{NAME}.service"
_STATE = f"/var/lib/private/edgellm/{NAME}"
_KEPT = f"/var/lib/edgellm/{NAME}"
BOOT_S = 120.0
# Nothing of the host's hardware, kernel settings or network may be touched; /tmp has the bundle.
_MASKED = (
    "tmp.mount systemd-tmpfiles-setup.service systemd-tmpfiles-clean.timer systemd-udevd.service "
    "systemd-udev-trigger.service systemd-modules-load.service systemd-sysctl.service systemd-remount-fs.service "
    "systemd-timesyncd.service systemd-networkd.service systemd-resolved.service systemd-logind.service dbus.service "
    "getty.target console-getty.service"
)
_INIT = r"""
set -e
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/up,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc; mount --bind proc/sys proc/sys; mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys; mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs dev
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/shm dev/pts; mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup; mount -t cgroup2 cgroup2 sys/fs/cgroup
if [ ! -e etc/edgellm-made ]; then
    rm -rf etc/systemd/system; mkdir -p etc/systemd/system home/pi; touch etc/edgellm-made
    printf '[Unit]\nRequires=basic.target\nAfter=basic.target\n' >etc/systemd/system/multi-user.target
    for unit in $2; do ln -s /dev/null etc/systemd/system/$unit; done
    echo edgellm-box >etc/hostname; : >etc/fstab; echo 0123456789abcdef0123456789abcdef >etc/machine-id
fi
ip link set lo up
lost=-sys_module,-sys_rawio,-sys_time,-sys_boot,-syslog,-mac_admin
exec chroot . env -i container=edgellm PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    setpriv --bounding-set "$lost" "$3" --system --unit=multi-user.target
"""


def unified() -> Path | None:
    """Where the unified cgroup hierarchy is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        if line.split()[2] == "cgroup2":
            return Path(line.split()[1])
    return None


class Machine(Protocol):
    """Something with a systemd. patience: how much slower than this machine it is."""

    patience: int
    has_memory_to_itself: bool

    def boot(self) -> float: ...
    def run(self, script: str, check: bool = True) -> str: ...
    def edgellm(self, *arguments: str) -> dict[str, Any]: ...
    def power_off(self) -> None: ...
    def remove(self) -> None: ...


class Box:
    """This machine once more, with a systemd of its own; what it writes lies in `folder`."""

    patience = 1
    has_memory_to_itself = False

    def __init__(self, folder: Path, hierarchy: Path) -> None:
        self.folder, self.group = folder, hierarchy / f"edgellm-{os.getpid()}"
        for name in ("up", "work", "root"):
            (folder / name).mkdir()
        self.group.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        self.init = 0
        self.environment = {
            "HOME": "/home/pi",
            "XDG_STATE_HOME": "/home/pi/state",
            "XDG_CONFIG_HOME": "/home/pi/config",
        }

    def boot(self) -> float:
        """Starts it and waits until systemd says that it runs; returns the seconds that took."""
        began = time.monotonic()
        join = 'echo $$ >"$1/cgroup.procs"; shift; exec unshare -C -m -p -u -i -n --fork --kill-child sh -c "$@"'
        argv = ["sh", "-c", join, "box", str(self.group), _INIT, "box", str(self.folder), _MASKED, SYSTEMD]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while time.monotonic() - began < BOOT_S:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            self.init = int(children[0]) if children else 0
            if self.init and self.run("systemctl is-system-running 2>/dev/null", check=False).strip() == "running":
                return time.monotonic() - began
            time.sleep(0.2)
        raise SystemExit("systemd does not come up in its namespaces")

    def run(self, script: str, check: bool = True) -> str:
        argv = ["nsenter", "-t", str(self.init), "-a", "-r", "-w", "sh", "-c", script]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=900)
        if check and done.returncode != 0:
            raise SystemExit(f"{script}: {done.stdout}{done.stderr}")
        return done.stdout

    def edgellm(self, *arguments: str) -> dict[str, Any]:
        """A command with --json, as the user whose home has the model (here: root)."""
        words = " ".join([*arguments, "--board", "local", "--json"])
        given = " ".join(f"{key}={value}" for key, value in self.environment.items())
        said = self.run(f"cd {os.getcwd()} && {given} {sys.executable} -m edgellm {words}")
        answer: dict[str, Any] = json.loads(said)
        return answer

    def power_off(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            while any(path.read_text().split() for path in self.group.rglob("cgroup.procs")):
                time.sleep(0.05)

    def remove(self) -> None:
        self.power_off()
        for child in [*sorted((path for path in self.group.rglob("*") if path.is_dir()), reverse=True), self.group]:
            wait_until(f"{child} is empty", lambda child=child: _removed(child), 30)


def _removed(group: Path) -> bool:
    """Removes a cgroup; False while the kernel still buries who was in it."""
    try:
        group.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def wait_until(what: str, holds: Callable[[], bool], patience_s: float) -> float:
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > patience_s:
            raise SystemExit(f"FAILED: {what}: not within {patience_s:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - began


def expect(what: str, holds: bool, seen: object) -> None:
    print(f"{'ok' if holds else 'FAILED'}: {what}: {seen}", flush=True)
    if not holds:
        raise SystemExit(1)


def show(box: Machine, key: str) -> str:
    return box.run(f"systemctl show -p {key} --value {UNIT}").strip()


def check(box: Machine, bundle: Path) -> None:
    print(f"booted in {box.boot():.1f} s", flush=True)
    done = box.edgellm("deploy", str(bundle), "--name", NAME, "--service")
    expect("deployed as a service", done["healthy"] is True and done["service"]["kind"] == "systemd", done["service"])

    pid = show(box, "MainPID")
    rights = dict(line.split(":\t", 1) for line in box.run(f"cat /proc/{pid}/status").splitlines() if ":\t" in line)
    expect("a user of its own", rights["Uid"].split()[0] not in ("0", "1000"), rights["Uid"])
    expect("no capability", int(rights["CapEff"], 16) == 0 and int(rights["CapBnd"], 16) == 0, rights["CapEff"])
    expect("system calls are filtered", rights["Seccomp"].strip() == "2", rights["Seccomp"])
    touch = f"nsenter -t {pid} -m -r sh -c 'touch /home/pi/.edgellm/x || touch /etc/x || touch /usr/x' 2>&1; true"
    said = box.run(touch)
    expect(
        "nothing can be written", said.count("Read-only file system") == 3, f"{said.count('Read-only')} of 3 refused"
    )
    expect("MemoryMax is the plan's", int(show(box, "MemoryMax")) > 0, show(box, "MemoryMax"))
    rated = box.run(f"systemd-analyze security --no-pager {UNIT} | tail -n 1").strip()
    expect("systemd's rating", "OK" in rated, rated.partition(": ")[2])

    box.run(f"kill -9 {pid}")
    took = wait_until("restarted", lambda: show(box, "NRestarts") == "1" and well(box), 60 * box.patience)
    expect("answers again after kill -9", True, f"{took:.1f} s")

    drop_in = f"/etc/systemd/system/{UNIT}.d"
    box.run(f"mkdir -p {drop_in} && printf '[Service]\\nWatchdogSec={3 * box.patience}\\n' >{drop_in}/quick.conf")
    box.run(f"systemctl daemon-reload && systemctl restart {UNIT}")
    box.run(f"kill -STOP {show(box, 'MainPID')}")
    took = wait_until("noticed", lambda: show(box, "NRestarts") == "1" and well(box), 60 * box.patience)
    expect("answers again after it hung", True, f"{took:.1f} s")
    box.run(f"rm -r {drop_in} && systemctl daemon-reload")
    if box.has_memory_to_itself:
        use_up_the_memory(box)

    box.power_off()
    booted = box.boot()
    took = wait_until("served after a boot", lambda: well(box), 60 * box.patience)
    expect("answers after a reboot that nobody announced", True, f"{booted + took:.1f} s")
    keep_sessions(box, bundle)
    began = time.monotonic()
    box.run(f"systemctl stop {UNIT}")
    expect("stops cleanly", show(box, "Result") == "success", f"{time.monotonic() - began:.2f} s")
    box.run(f"systemctl start {UNIT}")
    expect(
        "removed",
        box.edgellm("service", "remove")["removed"] is True,
        box.run("ls /etc/systemd/system | grep -c edgellm; true").strip(),
    )
    left = box.run(f"ls -d {_STATE} 2>/dev/null; true").strip()
    expect("with what it kept", left == "", left or "nothing is left")


def keep_sessions(box: Machine, bundle: Path) -> None:
    """Sessions outlive the server, in a folder that only the service reads; nothing else can be written.

    The service is made anew by a deployment that does not speak of its options, and has them still.
    """
    done = box.edgellm("service", "install", "--keep", "--sessions", "2")
    expect("installed to keep sessions", done["healthy"] is True, done["service"]["state"])
    first = ask(box)["usage"]
    done = box.edgellm("deploy", str(bundle), "--name", NAME, "--service")
    expect("deployed as a service again", done["healthy"] is True, done["service"]["state"])
    pid = show(box, "MainPID")
    options = box.run(f"tr '\\0' ' ' </proc/{pid}/cmdline").partition(" --port ")[2].strip()
    expect("with the options that it had", options == f"11434 --sessions 2 --keep {_KEPT}", options)
    second = ask(box)["usage"]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in (first, second)]
    expect(
        "a prompt is not computed again", cached[1] > cached[0], f"{cached[1]} of {second['prompt_tokens']} tokens kept"
    )
    mode = box.run(f"stat -L -c %a {_STATE}").strip()
    expect("nobody else reads its folder", mode == "700", mode)
    pid = show(box, "MainPID")
    places = ("/home/pi/.edgellm", "/etc", "/usr", "/var/lib", "/var")
    touch = "; ".join(f"touch {place}/x" for place in places)
    refused = box.run(f"nsenter -t {pid} -m -r sh -c '{touch}' 2>&1; true").count("Read-only file system")
    expect("nothing else can be written", refused == len(places), f"{refused} of {len(places)} refused")


def ask(box: Machine) -> dict[str, Any]:
    """The answer to a question, from the board's own loopback."""
    question = {"role": "user", "content": "is the garage door locked"}
    body = json.dumps({"messages": [question], "max_tokens": 4, "temperature": 0})
    url = "http://127.0.0.1:11434/v1/chat/completions"
    said = box.run(
        f"if command -v curl >/dev/null; then curl -sS -d '{body}' {url}; "
        f"else busybox wget -q -O - --post-data='{body}' {url}; fi"
    )
    answer: dict[str, Any] = json.loads(said)
    return answer


def use_up_the_memory(box: Machine) -> None:
    """Neighbours want more memory than there is, for a minute."""
    pid, free = show(box, "MainPID"), int(box.run("awk '/MemAvailable/ {print $2}' /proc/meminfo")) >> 10
    hog = f"dd if=/dev/zero of=/dev/null bs={free // 3}M"
    box.run(f"for name in 1 2 3 4 5; do systemd-run --unit hog$name --property RuntimeMaxSec=60 {hog}; done")
    print(f"five neighbours want {free // 3} MB each, and there are {free}", flush=True)
    states = "systemctl show -p ActiveState --value hog1 hog2 hog3 hog4 hog5"

    def ended() -> bool:
        try:
            return not set(box.run(states).split()) & {"active", "activating", "deactivating"}
        except EdgeError:  # as long as it lasts, a board without memory may be too slow even to say so
            return False

    wait_until("the neighbours end", ended, 600)
    said = box.run("dmesg | grep -o 'Killed process [0-9]* ([^)]*)'; true").splitlines()
    killed = Counter(line.rpartition(" ")[2] for line in said)
    expect("the kernel killed the neighbours and nobody else", killed.keys() == {"(dd)"}, dict(killed))
    expect("it was not restarted", show(box, "MainPID") == pid and well(box), f"process {pid}")


def well(box: Machine) -> bool:
    return box.edgellm("service", "status")["healthy"] is True


def here(folder: Path) -> Machine:
    hierarchy = unified()
    needed = [tool for tool in (SYSTEMD, "unshare", "nsenter", "setpriv", "ip") if shutil.which(tool) is None]
    if needed or hierarchy is None:
        raise SystemExit(f"needs a unified cgroup hierarchy, and {', '.join(needed) or 'systemd'}")
    return Box(folder, hierarchy)


def board(folder: Path) -> Machine:
    if reason := missing():
        raise SystemExit(reason)
    return SystemdBoard(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    args = parser.parse_args()
    if os.getuid() != 0:
        raise SystemExit("needs root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="edgellm-box-") as name:
        box = here(Path(name)) if args.bundle else board(Path(name))
        try:
            check(box, args.bundle.resolve() if args.bundle else MODEL)
        finally:
            box.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
