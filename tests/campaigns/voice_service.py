"""The voice assistant as a service under systemd, on the full-system board (tests.campaigns.systemd_board) or here.

    sudo python -m tests.campaigns.voice_service            # the board
    sudo python -m tests.campaigns.voice_service here       # this machine's systemd in namespaces: two minutes

The board has python3 and no network, and no sound card: arecord, which is sent along, records from a file, at the speed
of speech, and aplay plays into nothing. The assistant is deployed by the command a user types; what it heard, did and
said is read in the board's journal; its rights are looked at; it is killed, stopped in its tracks until the watchdog
notices, and the power fails; then it is taken away. Prints one line per observation; the first wrong one ends it with
1. Needs root; takes half an hour, most of it emulation. Here root deploys, and it is this machine's python3 that runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

from edgellm import app_install, application, cache, virtual, virtual_parts
from edgellm.local_remote import LocalRemote
from edgellm.probe import probe
from edgellm.remote import FileToSend
from edgellm.ssh import SshRemote
from tests.campaigns import service
from tests.campaigns.full_board import missing
from tests.campaigns.service import Machine, expect, wait_until
from tests.campaigns.systemd_board import SystemdBoard

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/voice_assistant"
sys.path.insert(0, str(EXAMPLE))
APP = "voice_assistant"
UNIT = f"edgellm-app-{APP}.service"
SAID = ("turn on the desk lamp.", "is the front door locked?")
"""Each after the wake word."""
PATIENCE_S = 900.0

_PYTHON = (
    *("python3", "python3-minimal", "python3.11", "python3.11-minimal", "libpython3.11-minimal"),
    *("libpython3.11-stdlib", "libpython3-stdlib", "libexpat1", "zlib1g", "libbz2-1.0", "liblzma5", "libsqlite3-0"),
    *("libncursesw6", "libtinfo6", "libreadline8", "libnsl2", "libtirpc3", "libstdc++6", "libgcc-s1", "libcrypt1"),
)
_SOUND = f"""\
pcm.microphone {{
    type file
    slave.pcm "null"
    file "/dev/null"
    infile "/home/{virtual.USER}/said.raw"
    format "raw"
}}
"""
# A microphone hears so much in a second; a file has no such clock.
_PACE = """\
import sys, time
began, n = time.monotonic(), 0
while frame := sys.stdin.buffer.read(1024):
    n += 1
    time.sleep(max(0.0, began + 0.032 * n - time.monotonic()))
    sys.stdout.buffer.write(frame)
    sys.stdout.buffer.flush()
"""
_CONFIG = f"""\
[capture]
device = "microphone"
command = ["sh", "-c", "arecord -q -D microphone -t raw -f S16_LE -r 16000 -c 1 | python3 /home/{virtual.USER}/pace.py"]
[playback]
device = "null"
"""


class Listening(Machine, Protocol):
    """A machine that hears what is put there. deploys_as_root: root runs the assistant, without any right."""

    deploys_as_root: bool

    def put(self, files: list[Path]) -> None:
        """Copies files into its user's home."""


class VoiceBoard(SystemdBoard):
    """As Raspberry Pi OS in that it has python3."""

    disk_mb = 1500
    memory_mb = 1024
    deploys_as_root = False

    def _fill(self, tree: Path) -> None:
        parts = cache.root() / "virtual" / "parts"
        more = virtual_parts.ensure_packages(
            parts, "python-arm64", _PYTHON, "fetching Python for the board", lambda what, share: None, arch="arm64"
        )
        subprocess.run(["cp", "-a", "--remove-destination", f"{more}/.", str(tree)], check=True)
        (tree / "etc").mkdir(exist_ok=True)
        (tree / "etc/asound.conf").write_text(_SOUND)
        super()._fill(tree)

    def put(self, files: list[Path]) -> None:
        with SshRemote(self.address) as remote:
            for file in files:
                remote.put_all([FileToSend(file, file.name)], f"/home/{virtual.USER}")


class VoiceBox(service.Box):
    """This machine once more, which has no network: what the assistant needs is fetched before."""

    deploys_as_root = True

    def __init__(self, folder: Path) -> None:
        hierarchy = service.unified()
        if hierarchy is None:
            raise SystemExit("needs a unified cgroup hierarchy")
        with LocalRemote("here") as remote:
            app = application.find(APP)
            application.collect(app, app_install.look(remote, probe(remote), app), lambda text: None)
        super().__init__(folder, hierarchy)
        self.environment |= {"EDGELLM_CACHE": str(cache.root())}
        (folder / "asound.conf").write_text(_SOUND)

    def put(self, files: list[Path]) -> None:
        self.run(f"cp {self.folder}/asound.conf /etc; cp {' '.join(map(str, files))} /home/{virtual.USER}")


def put_speech(board: Listening, folder: Path) -> Path:
    """Puts what will be said, and the microphone's clock, on the board; returns the assistant's configuration."""
    from evaluation.speakers import TUNED_ON, hush

    said = hush(6)
    for text in SAID:
        said += TUNED_ON[0].say(f"okay nabu, {text}") + hush(8)
    (folder / "said.raw").write_bytes(said)
    (folder / "pace.py").write_text(_PACE)
    (folder / "board.toml").write_text(_CONFIG + (EXAMPLE / "home.toml").read_text())
    board.put([folder / "said.raw", folder / "pace.py"])
    return folder / "board.toml"


def show(board: Machine, key: str) -> str:
    return board.run(f"systemctl show -p {key} --value {UNIT}").strip()


def events(board: Machine) -> list[dict[str, Any]]:
    """What the assistant told since it was last started."""
    lines = board.run(f"journalctl _PID={show(board, 'MainPID')} -o cat --no-pager; true").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def converses(board: Machine, what: str) -> None:
    """Waits until everything that was said is answered, and looks at the answers."""

    def answered() -> bool:
        return sum(event["event"] == "turn" for event in events(board)) >= len(SAID)

    began = time.monotonic()
    try:
        wait_until(what, answered, PATIENCE_S)
    except SystemExit:
        print(board.run(f"journalctl -u {UNIT} -n 40 --no-pager; systemctl status --no-pager {UNIT}; free -m; true"))
        raise
    told = events(board)
    tools = [(one["name"], one["arguments"]) for one in told if one["event"] == "tool"]
    said = [one["text"] for one in told if one["event"] == "say"]
    heard = [one["text"] for one in told if one["event"] == "heard"]
    # The end of the wake word may be heard as a small word before it.
    understood = [text.endswith(words.strip(".?")) for text, words in zip(heard, SAID, strict=False)]
    expect(f"{what}: heard", understood == [True] * len(SAID), heard)
    expect(f"{what}: did", tools == [("turn_on", {"device": "desk lamp"})], tools)
    expect(f"{what}: said", said == ["The desk lamp is now on.", "The front door is locked."], said)
    print(f"   after {time.monotonic() - began:.0f} s", flush=True)


def check(board: Listening, folder: Path) -> None:
    print(f"booted in {board.boot():.1f} s", flush=True)
    config = put_speech(board, folder)
    began = time.monotonic()
    done = board.edgellm("deploy", "--app", APP, "--app-config", str(config))
    app = done["app"]
    expect("deployed", app["kind"] == "systemd" and done["healthy"] is True, f"{time.monotonic() - began:.0f} s, {app}")
    expect("is ready", show(board, "ActiveState") == "active" and show(board, "NRestarts") == "0", show(board, "Type"))
    converses(board, "a conversation")
    rights_are_few(board)

    pid = show(board, "MainPID")
    board.run(f"kill -9 {pid}")
    took = wait_until("restarted", lambda: ready_again(board, pid), PATIENCE_S)
    expect("listens again after kill -9", True, f"{took:.0f} s")
    drop_in = f"/etc/systemd/system/{UNIT}.d"
    board.run(f"mkdir -p {drop_in} && printf '[Service]\\nWatchdogSec=60\\n' >{drop_in}/quick.conf")
    board.run(f"systemctl daemon-reload && systemctl restart {UNIT}")
    pid = show(board, "MainPID")
    board.run(f"kill -STOP {pid}")
    took = wait_until("noticed", lambda: ready_again(board, pid), PATIENCE_S)
    expect("listens again after it hung", True, f"{took:.0f} s")
    board.run(f"rm -r {drop_in} && systemctl daemon-reload")

    board.power_off()
    print(f"booted in {board.boot():.1f} s", flush=True)
    converses(board, "after a reboot that nobody announced")
    again = board.edgellm("deploy", "--app", APP)["app"]
    expect("a second deployment sends nothing", again["sent_bytes"] == 0, again)
    gone = board.edgellm("undeploy", "--app", APP)
    left = board.run(f"ls /home/{virtual.USER}/.edgellm/apps/{APP}; ls /etc/systemd/system | grep -c {UNIT}; true")
    expect("removed", gone["service"] == "systemd" and left.split() == ["config.toml", "0"], gone)
    gone = board.edgellm("undeploy", "--app", APP)
    expect("removed twice", gone["removed"] is False and gone["config"] == "kept", gone)
    gone = board.edgellm("undeploy", "--app", APP, "--purge")
    left = board.run(f"ls -a /home/{virtual.USER}/.edgellm | grep -c apps; true").strip()
    expect("its configuration, too", gone["config"] == "removed" and left == "0", gone)


def rights_are_few(board: Listening) -> None:
    pid = show(board, "MainPID")
    rights = dict(line.split(":\t", 1) for line in board.run(f"cat /proc/{pid}/status").splitlines() if ":\t" in line)
    expect("not another user", (rights["Uid"].split()[0] == "0") == board.deploys_as_root, rights["Uid"])
    expect("no capability", int(rights["CapEff"], 16) == 0 and int(rights["CapBnd"], 16) == 0, rights["CapEff"])
    expect("system calls are filtered", rights["Seccomp"].strip() == "2", rights["Seccomp"])
    expect("memory", True, f"{int(rights['VmRSS'].split()[0]) >> 10} MB, at most {show(board, 'MemoryMax')} bytes")
    user = rights["Uid"].split()[0]
    places = f"/home/{virtual.USER}/.edgellm/apps/{APP}/config.toml /home/{virtual.USER}/x /etc/x"
    touch = f"nsenter -t {pid} -m -r -S {user} sh -c 'for f in {places}; do touch $f; done' 2>&1; true"
    said = board.run(touch)
    expect("nothing can be written", said.count("Read-only file system") == 3, said.count("Read-only file system"))
    rated = board.run(f"systemd-analyze security --no-pager {UNIT} | tail -n 1").strip()
    expect("systemd's rating", "OK" in rated, rated.partition(": ")[2])


def ready_again(board: Machine, pid: str) -> bool:
    return show(board, "MainPID") not in ("0", pid) and show(board, "ActiveState") == "active"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", choices=("board", "here"), nargs="?", default="board")
    where = parser.parse_args().where
    if os.getuid() != 0:
        raise SystemExit("needs root")
    if where == "board" and (reason := missing()):
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory(prefix="edgellm-box-") as name:
        folder = Path(name)
        (folder / "box").mkdir()
        board: Listening = VoiceBoard(folder / "board") if where == "board" else VoiceBox(folder / "box")
        try:
            check(board, folder)
        finally:
            board.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
