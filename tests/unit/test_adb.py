"""adb's addresses, and what is said of an adb that is not there, hangs, or knows no ready device."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgellm.adb_client import AdbClient, find_adb, said, trouble
from edgellm.address import AdbAddress, SshAddress, parse_where
from edgellm.boards import find_board, load_board
from edgellm.cli import main
from edgellm.connection import address_of
from edgellm.errors import LinkError, LoginError, RemoteError, UnreachableError, UsageError
from edgellm.instances import instances_path, read_instances
from edgellm.remembered import Remembered, remember


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)


@pytest.mark.parametrize(
    ("text", "android", "address"),
    [
        ("adb", False, AdbAddress()),
        ("adb:", True, AdbAddress()),
        ("adb:R58M123ABC", False, AdbAddress("R58M123ABC")),
        ("adb:192.168.1.5:5555", False, AdbAddress("192.168.1.5:5555")),
        ("adb-R5._adb-tls-connect._tcp", True, AdbAddress("adb-R5._adb-tls-connect._tcp")),
        ("R58M123ABC", True, AdbAddress("R58M123ABC")),
        ("u0_a12@phone:8022", True, SshAddress("phone", 8022, "u0_a12")),
        ("R58M123ABC", False, SshAddress("R58M123ABC")),
        ("pi@adb", False, SshAddress("adb", user="pi")),
    ],
)
def test_addresses(text: str, android: bool, address: AdbAddress | SshAddress) -> None:
    assert parse_where(text, android) == address


@pytest.mark.parametrize("text", ["adb:-s", "adb:two words", "adb:a;b", "adb:" + "x" * 200])
def test_what_is_no_serial(text: str) -> None:
    with pytest.raises(UsageError, match="write adb:SERIAL"):
        parse_where(text)


def test_a_phone_has_a_name_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boards", "add", "phone", "android-arm64", "R58M123ABC"]) == 0
    assert "adb:R58M123ABC" in capsys.readouterr().out
    assert "port" not in instances_path().read_text()
    assert read_instances()["phone"].address == "adb:R58M123ABC"
    assert address_of(find_board("phone")) == AdbAddress("R58M123ABC")
    assert address_of(find_board("phone", "adb:other")) == AdbAddress("other")


def test_a_board_that_is_no_phone_may_have_adb_too() -> None:
    assert main(["boards", "add", "rock", "rock5b", "adb:0123456789"]) == 0
    assert address_of(find_board("rock")) == AdbAddress("0123456789")


def test_a_phone_without_an_address_is_the_only_one_or_the_last() -> None:
    board = load_board("android-arm64")
    assert address_of(board) == AdbAddress()
    remember("android-arm64", Remembered("R58M", "m"))
    assert address_of(board) == AdbAddress("R58M")


def adb_that(tmp_path: Path, script: str) -> AdbClient:
    program = tmp_path / "adb"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return AdbClient(AdbAddress(program=program))


def test_where_adb_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("ANDROID_HOME", raising=False)
    monkeypatch.delenv("ANDROID_SDK_ROOT", raising=False)
    with pytest.raises(RemoteError, match=r"this machine has none; install it with `sudo apt-get install adb`"):
        find_adb()
    (tmp_path / "sdk/platform-tools").mkdir(parents=True)
    adb_that(tmp_path / "sdk/platform-tools", "")
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    assert find_adb() == tmp_path / "sdk/platform-tools/adb"
    assert main(["status", "--board", "android-arm64"]) == 1


def test_an_adb_that_hangs_or_is_broken(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"`adb devices` gave no answer for 0 s; its server may hang: run `adb kill-"):
        adb_that(tmp_path, "sleep 60").run("devices", limit_s=0.2)
    broken = adb_that(tmp_path, "echo '* daemon not running' >&2; echo 'adb: cannot connect to daemon' >&2; exit 1")
    with pytest.raises(RemoteError, match="failed: cannot connect to daemon; see that `adb start-server`"):
        broken.devices()
    with pytest.raises(RemoteError, match="cannot start"):
        AdbClient(AdbAddress(program=tmp_path)).devices()


LISTED = r"printf 'List of devices attached\n%s\n\n'"


def test_which_device_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = adb_that(tmp_path, f"{LISTED} 'one\tdevice\ntwo\tdevice'")
    assert two.choose("two") == "two"
    with pytest.raises(UsageError, match=r"one of: one \(device\), two \(device\)"):
        two.choose(None)
    monkeypatch.setenv("ANDROID_SERIAL", "one")
    assert two.choose(None) == "one"
    monkeypatch.delenv("ANDROID_SERIAL")
    assert adb_that(tmp_path, f"{LISTED} 'one\tdevice'").choose(None) == "one"
    closed = r"'one\tno permissions (user in plugdev group; are your udev rules wrong?); see [http://x]'"
    with pytest.raises(LoginError, match=r"may not open the device: no permissions .*udev rules"):
        adb_that(tmp_path, f"printf 'List\\n'; printf {closed}").choose(None)


@pytest.mark.parametrize(
    ("state", "kind", "text"),
    [
        ("unauthorized", LoginError, "unlock it"),
        ("offline", UnreachableError, "adb reconnect offline"),
        ("bootloader", UnreachableError, "adb reboot"),
        ("gone", UnreachableError, "plug it in again"),
    ],
)
def test_each_state_has_its_remedy(state: str, kind: type[RemoteError], text: str) -> None:
    error = trouble("R58M", state)
    assert type(error) is kind
    assert text in str(error)
    assert "adb:R58M" in str(error)


def test_what_adb_said_is_one_line() -> None:
    done = subprocess.CompletedProcess([], 1, "", "* daemon started successfully\nadb: error: no\x1b[2J such device\n")
    assert said(done) == "no[2J such device"
