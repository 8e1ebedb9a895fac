"""doctor: answers of boards, hostile answers, this machine, and the command.

The answers in tests/data/doctor are written in the script's form after what such boards print; tests/emulated and
tests/board ask real systems.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm import host_examination
from edgellm.boards import load_board
from edgellm.cli import main
from edgellm.errors import CommandError
from edgellm.examination import SCRIPT, Examination, Governor, Slot, examine, parse
from edgellm.findings import ERROR, LEVELS, NOTE, OK, WARNING, Finding, board_findings, worst
from edgellm.local_remote import LocalRemote

RECORDED = Path(__file__).resolve().parents[1] / "data" / "doctor"


def recorded(name: str) -> Examination:
    return parse((RECORDED / f"{name}.txt").read_text())


def findings(name: str, board: str) -> list[Finding]:
    return board_findings(recorded(name), load_board(board))


def levels(found: list[Finding], subject: str) -> list[str]:
    return [each.level for each in found if each.subject == subject]


def text_of(found: list[Finding], subject: str) -> str:
    return "\n".join(f"{each.text} {each.remedy}" for each in found if each.subject == subject)


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))


def test_a_pi_5_with_raspberry_pi_os() -> None:
    seen = recorded("rpi5")
    assert (seen.arch, seen.bits, seen.glibc, seen.page_bytes, seen.cores) == ("aarch64", 64, (2, 36), 16384, 4)
    assert seen.memory_bytes == 8256160 * 1024
    assert seen.disk_free_bytes == 22586032 * 1024
    assert seen.read_bytes_per_s == pytest.approx(67108864 / 0.74)
    assert seen.governors == (Governor("ondemand", 2400000, 2400000, "0 1 2 3"),)
    assert seen.slots == (Slot("SmolLM2-135M", "0123456789abcdef", True),)
    found = findings("rpi5", "rpi5")
    assert worst(found) == NOTE
    assert "tier dotprod" in text_of(found, "processor")
    # 0x50000: under-voltage and throttling since the boot, neither now
    assert levels(found, "throttling") == [NOTE, NOTE]
    assert "under-voltage since the boot" in text_of(found, "throttling")
    assert "power supply" in text_of(found, "throttling")


def test_a_32_bit_userland_on_a_64_bit_kernel() -> None:
    found = findings("rpi4_32bit_userland", "rpi4")
    assert recorded("rpi4_32bit_userland").arch == "armv7"
    assert levels(found, "architecture") == [ERROR]
    assert "64-bit system" in text_of(found, "architecture")
    assert "--board rpi2" in text_of(found, "architecture")
    assert levels(found, "processor") == []  # what the CPU could do is not the point
    # the same board is well as what it is
    assert levels(findings("rpi4_32bit_userland", "rpi2"), "architecture") == [OK]
    assert levels(findings("rpi4_32bit_userland", "rpi2"), "processor")[0] == OK


def test_a_board_in_trouble() -> None:
    found = findings("rpi4_32bit_userland", "rpi2")
    assert levels(found, "memory") == [WARNING]
    assert levels(found, "disk") == [ERROR, WARNING]  # full, and slow
    assert "loads" not in text_of(found, "disk")
    assert "governor" in text_of(found, "governor")
    assert levels(found, "temperature") == [WARNING]
    # cooling device at work; 0x50005: under-voltage and throttled, now
    assert levels(found, "throttling") == [WARNING, WARNING, WARNING]
    assert levels(found, "load") == [NOTE]
    assert worst(found) == ERROR


def test_alpine_with_musl() -> None:
    seen = recorded("alpine")
    assert (seen.libc, seen.glibc, seen.bits, seen.page_bytes) == ("musl", None, 64, 4096)
    found = findings("alpine", "rpi5")
    assert levels(found, "C library") == [ERROR]
    assert "gcompat" in text_of(found, "C library")
    assert seen.read_bytes_per_s is None
    assert levels(found, "disk") == [OK, NOTE]
    # performance, but at 1.5 of 2.4 GHz
    assert levels(found, "governor") == [OK, WARNING]
    assert "1.5 of 2.4 GHz" in text_of(found, "governor")


def test_an_android_phone() -> None:
    seen = recorded("android")
    assert (seen.libc, seen.os, seen.cores) == ("bionic", "Android 14", 8)
    assert max(seen.temperatures_c, key=lambda zone: zone[1]) == ("cpu-0-0", 38.2)  # not the modem's −273 °C
    found = findings("android", "android-arm64")
    assert worst(found) == NOTE
    assert "can run tier i8mm" in text_of(found, "processor")
    assert levels(findings("android", "rpi5"), "C library") == [ERROR]


@pytest.mark.parametrize(
    ("change", "subject", "level", "said"),
    [
        ({"glibc": (2, 27), "libc": "glibc 2.27"}, "C library", ERROR, "older than 2.28"),
        ({"glibc": None, "libc": ""}, "C library", WARNING, "ldd --version"),
        ({"page_bytes": 131072}, "page size", ERROR, "128 KB"),
        ({"features": frozenset({"fp", "asimd"})}, "processor", ERROR, "lacks asimddp"),
        ({"features": frozenset()}, "processor", WARNING, "/proc/cpuinfo"),
        ({"writable": False}, "disk", ERROR, "/home/pi cannot be written"),
        ({"disk_free_bytes": None}, "disk", WARNING, "df -Pk"),
        ({"temperatures_c": (("cpu", 75.0),)}, "temperature", NOTE, "near 80 °C"),
        ({"throttled": 0}, "throttling", OK, "none since the boot"),
        ({"throttled": 0x8}, "throttling", WARNING, "soft temperature limit now"),
        ({"icds": ()}, "Vulkan", NOTE, "mesa-vulkan-drivers"),
        ({"libvulkan": ""}, "Vulkan", NOTE, "libvulkan1"),
        ({"render": (("/dev/dri/renderD128", False),)}, "Vulkan", NOTE, "usermod"),
        ({"slots": (Slot("m", "s", False),)}, "model", ERROR, "deploy it again"),
        ({"slots": ()}, "model", NOTE, "edgellm deploy --board rpi5"),
        ({"lacks": ("tar",)}, "system", ERROR, "tar"),
        ({"system": "FreeBSD"}, "system", ERROR, "Linux"),
        ({"arch": "riscv64", "machine": "riscv64"}, "architecture", ERROR, "edgellm boards"),
        ({"cores": 2}, "processor", WARNING, "2 of 4 cores"),
    ],
)
def test_each_finding_and_its_remedy(change: dict[str, object], subject: str, level: str, said: str) -> None:
    found = board_findings(replace(recorded("rpi5"), **change), load_board("rpi5"))  # type: ignore[arg-type]
    assert level in levels(found, subject)
    assert said in text_of(found, subject)
    assert all(each.remedy for each in found if each.level in (WARNING, ERROR))


def test_what_a_board_says_cannot_command_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J"
    lines = (RECORDED / "rpi5.txt").read_text().splitlines()
    text = "\n".join(
        line.replace(": ", f": {evil}", 1) if not line.startswith(("system", "machine")) else line for line in lines
    )
    found = board_findings(parse(text), load_board("rpi5"))
    said = "".join(each.text + each.remedy for each in found)
    assert "\x1b" not in said
    assert "\x07" not in said


@pytest.mark.parametrize(
    "line",
    [
        "read: 99999999999999999999 1 2",
        "read: 67108864 nan inf",
        "zone: 1e308 x",
        "zone: 999999999999999 x",
        "governor: ",
        "governor: a b c d e f",
        "cooling: x y",
        "throttled: throttled=0xffffffffffffffffffff",
        "slot: x",
        "page: 99999999999999999999999",
        "load: -",
        "df: /dev/x 1 1 99999999999999999999999999 1% /",
        "class: 9",
        "no colon at all",
    ],
)
def test_nonsense_is_not_believed(line: str) -> None:
    text = f"system: Linux\nmachine: aarch64\n{line}\n== memory\nMemTotal: x kB\n== cpu\nFeatures: {'a' * 10000}\n"
    found = board_findings(parse(text), load_board("rpi5"))
    assert all(each.level in LEVELS and len(each.text) < 500 for each in found)
    assert not levels(found, "temperature")


def test_an_answer_that_is_none() -> None:
    with pytest.raises(ValueError, match="does not say what system"):
        parse("Welcome to the router\n")

    class Silent(LocalRemote):
        def run(self, argv, **options):  # type: ignore[no-untyped-def]
            return super().run(["echo", "This account is not available"], **options)

    with pytest.raises(CommandError, match="POSIX shell"):
        examine(Silent("silent"))


def test_this_machine_is_examined_for_real() -> None:
    seen = examine(LocalRemote("local"))
    assert seen.system == "Linux"
    assert seen.cores >= 1
    assert seen.memory_bytes > 100e6
    assert seen.features >= set(load_board("local").target().tier.requires)
    assert levels(board_findings(seen, load_board("local")), "architecture") == [OK]


@pytest.mark.parametrize("shell", [["dash"], ["bash", "--posix"], ["busybox", "sh"]])
def test_the_script_runs_in_every_shell(shell: list[str]) -> None:
    import shutil

    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    done = subprocess.run([*shell, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert "not found" not in done.stderr
    assert parse(done.stdout).memory_bytes > 0


def test_the_command_says_it_in_json_and_in_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--board", "local", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert code == (1 if answer["level"] == ERROR else 0)
    assert {each["subject"] for each in answer["findings"]} >= {"system", "architecture", "memory", "disk"}
    assert main(["doctor", "--board", "local"]) == code
    assert "architecture" in capsys.readouterr().out


def test_an_error_is_exit_code_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.examination.examine", lambda remote: recorded("alpine"))
    assert main(["doctor", "--board", "local"]) == 1
    out = capsys.readouterr().out
    assert "→" in out
    assert "error" in out.splitlines()[-1]


def test_the_host_is_examined_for_real() -> None:
    found = host_examination.host_findings()
    subjects = {each.subject: each for each in found}
    assert subjects["Python"].level in (OK, WARNING)
    assert subjects["apache-tvm"].level == OK
    assert subjects["TVM"].level == OK, subjects["TVM"].text
    assert subjects["Zig's C compiler"].level == OK
    assert all(each.remedy for each in found if each.level in (WARNING, ERROR))


def test_a_wrong_version_and_a_compiler_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_examination, "pins", lambda: {"apache-tvm": "0.0.1", "nobody-has-this": "1"})
    found = host_examination._packages()
    assert [each.level for each in found] == [ERROR, ERROR]
    assert "must be 0.0.1" in found[0].text
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert [each.level for each in host_examination._compilers()] == [ERROR, ERROR]
