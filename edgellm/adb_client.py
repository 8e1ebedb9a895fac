"""The program `adb`: where it is, which devices it knows, and what a device's state asks of its user.

Nothing here waits for ever: adb hangs where its server does. States are those of AOSP's packages/modules/adb,
`ConnectionState` in adb.h.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from edgellm.address import AdbAddress
from edgellm.errors import LinkError, LoginError, RemoteError, UnreachableError, UsageError
from edgellm.terminal import one_line

ANSWER_S = 20.0
"""How long adb may take for a question that costs the device nothing; starting its server is the longest."""

_SETTLE_S = 8.0
_PASSING = ("offline", "connecting", "authorizing")
"""States that a device over the network passes through while it is being connected."""


class AdbClient:
    """adb with one server. Raises RemoteError if there is no adb on this machine."""

    def __init__(self, address: AdbAddress) -> None:
        self.program = address.program or find_adb()
        self._server = address.server
        self.environment: Mapping[str, str] = {
            **os.environ,
            **({"ADB_SERVER_SOCKET": self._server} if self._server else {}),
        }

    def run(self, *arguments: str, limit_s: float = ANSWER_S) -> subprocess.CompletedProcess[str]:
        """Runs adb to its end. Raises LinkError if it takes longer than limit_s."""
        # A server that adb starts inherits what adb writes to: a file it may keep, a pipe would seem never to end.
        with (
            tempfile.TemporaryFile("w+", errors="replace") as out,
            tempfile.TemporaryFile("w+", errors="replace") as err,
        ):
            try:
                done = subprocess.run(
                    [str(self.program), *arguments],
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    timeout=limit_s,
                    check=False,
                    start_new_session=True,  # Ctrl-C ends edgellm, not the server that others use too
                )
            except subprocess.TimeoutExpired as error:
                raise LinkError(
                    f"`adb {arguments[0]}` gave no answer for {limit_s:.0f} s; its server may hang: run "
                    "`adb kill-server` and try again"
                ) from error
            except OSError as error:
                raise RemoteError(f"cannot start {self.program}: {error.strerror}") from error
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())

    def devices(self) -> dict[str, str]:
        """The state of each device by its serial. Raises RemoteError if adb's server does not start."""
        done = self.run("devices")
        if done.returncode:
            raise RemoteError(f"`adb devices` failed: {said(done)}; see that `adb start-server` works")
        found = {}
        for line in done.stdout.splitlines():
            serial, tab, state = line.partition("\t")
            if tab and serial:
                found[one_line(serial, 128)] = one_line(state, 200)
        return found

    def choose(self, serial: str | None) -> str:
        """The serial of the device that is meant, which is ready to be used.

        serial: None means ANDROID_SERIAL or the only device. "host:port" is connected if it is not yet.
        Raises UsageError, UnreachableError or LoginError, each with what to do.
        """
        serial = serial or os.environ.get("ANDROID_SERIAL") or None
        devices = self.devices()
        if serial is None:
            if len(devices) > 1:
                listed = ", ".join(f"{each} ({state})" for each, state in devices.items())
                raise UsageError(f"adb knows several devices; add --host adb:SERIAL for one of: {listed}")
            if not devices:
                raise UnreachableError(
                    "adb knows no device; enable USB debugging in its developer options, connect it, and look for it "
                    "with `adb devices`"
                )
            serial = next(iter(devices))
        elif devices.get(serial) in (None, "offline") and ":" in serial:
            done = self.run("connect", serial, limit_s=2 * ANSWER_S)
            devices = self.devices()
            if serial not in devices:
                raise UnreachableError(
                    f"adb:{serial} cannot be connected: {said(done)}; see that `adb tcpip` or wireless debugging is on"
                )
        self._see_that_ready(serial, devices)
        return serial

    def _see_that_ready(self, serial: str, devices: dict[str, str]) -> None:
        if serial not in devices:
            there = ", ".join(devices) or "none"
            raise UnreachableError(
                f"adb:{serial} is not connected; plug it in and see `adb devices` (connected now: {there})"
            )
        deadline = time.monotonic() + _SETTLE_S
        while devices.get(serial) in _PASSING and time.monotonic() < deadline:
            time.sleep(0.1)
            devices = self.devices()
        state = devices.get(serial, "gone")
        if state != "device":
            raise trouble(serial, state)


def find_adb() -> Path:
    """adb on PATH, or in the Android SDK that ANDROID_HOME names. Raises RemoteError if there is none."""
    found = shutil.which("adb")
    for variable in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        if found is None and os.environ.get(variable):
            found = shutil.which("adb", path=str(Path(os.environ[variable]) / "platform-tools"))
    if found is None:
        raise RemoteError(
            "a device over USB needs the program adb, and this machine has none; install it with "
            "`sudo apt-get install adb`, or set ANDROID_HOME to an Android SDK with platform-tools"
        )
    return Path(found)


def trouble(serial: str, state: str) -> RemoteError:
    """The error for a device that is in another state than "device"."""
    if state in ("unauthorized", "authorizing"):
        return LoginError(
            f"adb:{serial} has not allowed this computer yet: unlock it and answer its question about USB debugging; "
            "if it asks nothing, revoke the authorizations in its developer options and plug it in again"
        )
    if state.startswith("no permissions"):
        return LoginError(
            f"adb:{serial}: this user may not open the device: {state}; install the udev rules with `sudo apt-get "
            "install android-sdk-platform-tools-common` and plug it in again"
        )
    if state in ("bootloader", "recovery", "rescue", "sideload"):
        return UnreachableError(f"adb:{serial} is in {state} mode; start its system, perhaps with `adb reboot`")
    return UnreachableError(
        f"adb:{serial} is {state}; see that it is awake, plug it in again, or run `adb reconnect offline`"
    )


def said(done: subprocess.CompletedProcess[str]) -> str:
    """adb's reason in a line; it writes some to standard output."""
    text = done.stderr.strip() or done.stdout.strip()
    lines = [line for line in text.splitlines() if not line.startswith("* ")]  # "* daemon started successfully"
    return one_line(lines[-1] if lines else "it said nothing", 200).removeprefix("adb: ").removeprefix("error: ")
