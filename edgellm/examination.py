"""Asks a board about itself with one POSIX script, which busybox and Android's shell run too, and reads the answer.

Whatever comes back is somebody else's text: it is bounded, cleaned, and parsed into numbers where numbers are meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgellm.errors import CommandError
from edgellm.remote import Remote
from edgellm.terminal import one_line

_LIMIT_BYTES = 1 << 20
_SILENCE_S = 120.0
READ_MIB = 64
"""How much of a file is read to measure the disk."""

SCRIPT = r"""
say() { printf '%s: %s\n' "$1" "$2"; }
first() { cat "$1" 2>/dev/null | tr -d '\000' | head -n 1; }
have() { command -v "$1" >/dev/null 2>&1; }
say home "$HOME"
say system "$(uname -s)"
say machine "$(uname -m)"
say kernel "$(uname -r)"
say model "$(first /proc/device-tree/model)"
say os "$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release 2>/dev/null | tr -d '"' | head -n 1)"
have getprop && say android "$(getprop ro.build.version.release)"
for shell in /bin/sh /system/bin/sh; do
    [ -e "$shell" ] && { say class "$(od -An -tu1 -j4 -N1 "$shell" 2>/dev/null)"; break; }
done
say bits "$(getconf LONG_BIT 2>/dev/null)"
say page "$(getconf PAGESIZE 2>/dev/null || getconf PAGE_SIZE 2>/dev/null)"
say smaps "$(grep -m 1 KernelPageSize /proc/self/smaps 2>/dev/null)"
say glibc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
say ldd "$(ldd --version 2>&1 | head -n 2 | tr '\n' ' ')"
for file in /lib/libc.so.6 /lib/*/libc.so.6 /lib64/libc.so.6 /usr/lib/libc.so.6 /usr/lib/*/libc.so.6; do
    [ -x "$file" ] && { say ldd "$("$file" 2>/dev/null | head -n 1)"; break; }
done
for file in /lib/ld-musl-*; do [ -e "$file" ] && say ldd "musl ${file##*/}"; done
for tool in sh cat tar stat find df od sync rm mv ln mkdir readlink sha256sum; do
    have "$tool" || say lacks "$tool"
done
place="$HOME/.edgellm"; [ -d "$place" ] || place="$HOME"
df -Pk "$place" 2>/dev/null | { read -r header; read -r line; say df "$line"; }
[ -w "$place" ] || say readonly "$place"
for policy in /sys/devices/system/cpu/cpufreq/policy*; do
    [ -r "$policy/scaling_governor" ] || continue
    say governor "$(first "$policy/scaling_governor") $(first "$policy/scaling_max_freq") \
$(first "$policy/cpuinfo_max_freq") $(first "$policy/affected_cpus")"
done
for zone in /sys/class/thermal/thermal_zone*; do
    [ -r "$zone/temp" ] && say zone "$(first "$zone/temp") $(first "$zone/type")"
done
for device in /sys/class/thermal/cooling_device*; do
    case "$(first "$device/type")" in
    *cpu* | *Processor*) say cooling "$(first "$device/cur_state") $(first "$device/max_state")" ;;
    esac
done
throttled=
have vcgencmd && throttled=$(vcgencmd get_throttled 2>/dev/null)
for file in /sys/devices/platform/soc/soc:firmware/get_throttled \
    /sys/devices/platform/soc/*firmware/get_throttled /sys/devices/platform/*firmware/get_throttled; do
    [ -z "$throttled" ] && [ -r "$file" ] && throttled="throttled=0x$(first "$file")"
done
say throttled "$throttled"
for file in /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json /vendor/lib*/hw/vulkan.*.so; do
    [ -e "$file" ] && say icd "${file##*/}"
done
for file in /usr/lib/libvulkan.so* /usr/lib/*/libvulkan.so* /lib/*/libvulkan.so* /system/lib*/libvulkan.so; do
    [ -e "$file" ] && { say libvulkan "$file"; break; }
done
for file in /dev/dri/renderD*; do
    [ -e "$file" ] && say render "$file $([ -r "$file" ] && [ -w "$file" ] && echo usable)"
done
for folder in "$HOME"/.edgellm/models/*/; do
    slot=$(readlink "${folder}current" 2>/dev/null) || continue
    name=${folder%/}
    whole=missing; [ -f "${folder}current/manifest.json" ] && [ -x "${folder}current/edgellm-rt" ] && whole=whole
    say slot "$whole $slot ${name##*/}"
done
big=$(find "$HOME/.edgellm/models" -type f -size +32768k 2>/dev/null | head -n 1)
[ -n "$big" ] || big=$(find /usr/lib /usr/bin /boot /system/lib64 -xdev -type f -size +16384k 2>/dev/null | head -n 1)
if [ -n "$big" ] && have dd; then
    read -r from rest </proc/uptime
    size=$(dd if="$big" bs=1048576 count=64 iflag=direct 2>/dev/null | wc -c)
    read -r until rest </proc/uptime
    say read "$size $from $until"
fi
say load "$(first /proc/loadavg)"
echo "== memory"; cat /proc/meminfo 2>/dev/null
echo "== cpu"; cat /proc/cpuinfo 2>/dev/null
"""

ARCHES = {
    "aarch64": "aarch64",
    "arm64": "aarch64",
    "armv7l": "armv7",
    "armv8l": "armv7",
    "armhf": "armv7",
    "x86_64": "x86_64",
    "amd64": "x86_64",
}
_DF = re.compile(r" +\d+ +\d+ +(\d+) +\d+% ")
_GLIBC = re.compile(r"(?:glibc|GLIBC|GNU libc|Debian GLIBC|Ubuntu GLIBC)[^\d]{0,40}(\d{1,2})\.(\d{1,3})")
_THROTTLED = re.compile(r"throttled=0x([0-9a-fA-F]{1,8})")


@dataclass(frozen=True)
class Governor:
    """Of some cores. max_khz: what they may use now; top_khz: what the hardware can; 0: not said."""

    name: str
    max_khz: int
    top_khz: int
    cores: str


@dataclass(frozen=True)
class Slot:
    """A deployed model. whole: its manifest and runtime are there."""

    model: str
    name: str
    whole: bool


@dataclass(frozen=True)
class Examination:
    """What a board said. None, empty or 0: it did not say.

    machine          as the kernel calls it; arch: of programs that run there; bits: of the userland
    libc             "glibc 2.36", "musl", "bionic" or ""; glibc: its version
    features         of every core; cores: their number
    read_bytes_per_s of the disk, without the page cache
    throttled        the Raspberry Pi firmware's bits; cooling: (state, most) of the processor's cooling devices
    """

    home: str
    system: str
    machine: str
    arch: str
    bits: int | None
    kernel: str
    model: str
    os: str
    libc: str
    glibc: tuple[int, int] | None
    page_bytes: int | None
    features: frozenset[str]
    cores: int
    memory_bytes: int
    available_bytes: int
    swap_free_bytes: int
    disk_free_bytes: int | None
    writable: bool
    read_bytes_per_s: float | None
    governors: tuple[Governor, ...] = ()
    temperatures_c: tuple[tuple[str, float], ...] = ()
    cooling: tuple[tuple[int, int], ...] = ()
    throttled: int | None = None
    icds: tuple[str, ...] = ()
    libvulkan: str = ""
    render: tuple[tuple[str, bool], ...] = ()
    slots: tuple[Slot, ...] = ()
    lacks: tuple[str, ...] = ()
    load: float | None = None
    notes: tuple[str, ...] = field(default=())


def examine(remote: Remote) -> Examination:
    """Asks the board. Raises CommandError if it does not answer as a Linux shell would."""
    result = remote.run(["sh", "-c", SCRIPT], silence_s=_SILENCE_S, limit_bytes=_LIMIT_BYTES)
    try:
        return parse(result.text)
    except ValueError as error:
        said = one_line(result.stderr, 160)
        raise CommandError(
            f"{remote.name}: {error}; edgellm needs a Linux with a POSIX shell{f' (it said: {said})' if said else ''}",
            result.status,
            said,
        ) from error


def parse(text: str) -> Examination:
    """Reads the script's answer. ValueError if it does not name a system."""
    head, _, rest = text.partition("== memory\n")
    memory_text, _, cpu_text = rest.partition("== cpu\n")
    values: dict[str, list[str]] = {}
    for line in head.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.isalpha():
            values.setdefault(key, []).append(one_line(value, 200))

    def one(key: str) -> str:
        return values.get(key, [""])[0]

    if not one("system") or not one("machine"):
        raise ValueError("the board does not say what system it runs")
    features, cores = _cpu(cpu_text)
    bits = _bits(one("class"), one("bits"))
    arch = ARCHES.get(one("machine"), one("machine"))
    if arch == "aarch64" and bits == 32:
        arch = "armv7"
        features |= {"neon", "vfpv3", "vfpv4", "half"}  # every ARMv8-A core has these in its 32-bit state
    libc, glibc = _libc(one("glibc"), " ".join(values.get("ldd", ())), one("android"))
    memory = _memory(memory_text)
    throttled = _THROTTLED.search(one("throttled"))
    disk = _DF.search(one("df"))
    return Examination(
        home=one("home"),
        system=one("system"),
        machine=one("machine"),
        arch=arch,
        bits=bits,
        kernel=one("kernel"),
        model=one("model"),
        os=one("os") or (f"Android {one('android')}" if one("android") else ""),
        libc=libc,
        glibc=glibc,
        page_bytes=_page(one("page"), one("smaps")),
        features=frozenset(features),
        cores=cores,
        memory_bytes=memory.get("MemTotal", 0),
        available_bytes=memory.get("MemAvailable", 0),
        swap_free_bytes=memory.get("SwapFree", 0),
        disk_free_bytes=int(disk[1]) * 1024 if disk else None,
        writable="readonly" not in values,
        read_bytes_per_s=_read_speed(one("read")),
        governors=tuple(_governor(line) for line in values.get("governor", ())),
        temperatures_c=tuple(_temperatures(values.get("zone", ()))),
        cooling=tuple(_pairs(values.get("cooling", ()))),
        throttled=int(throttled[1], 16) if throttled else None,
        icds=tuple(dict.fromkeys(values.get("icd", ()))),
        libvulkan=one("libvulkan"),
        render=tuple((line.split(" ")[0], line.endswith(" usable")) for line in values.get("render", ())),
        slots=tuple(_slots(values.get("slot", ()))),
        lacks=tuple(values.get("lacks", ())),
        load=_number(one("load").split(" ")[0]),
    )


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d{1,15}(\.\d{1,9})?", text) else None


def _whole(text: str) -> int:
    return int(text) if re.fullmatch(r"\d{1,15}", text) else 0


def _cpu(text: str) -> tuple[set[str], int]:
    """Features that every core has, and the number of cores."""
    features: set[str] | None = None
    cores = 0
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("Features", "flags"):
            words = {word for word in value.split() if re.fullmatch(r"[\w.]{1,40}", word)}
            features = words if features is None else features & words
        cores += key.strip() == "processor" and value.strip().isdigit()
    return features or set(), cores


def _bits(elf_class: str, long_bit: str) -> int | None:
    """Of the userland: the shell's ELF class counts, because a 64-bit kernel runs 32-bit systems too."""
    return {"1": 32, "2": 64}.get(elf_class) or {"32": 32, "64": 64}.get(long_bit)


def _libc(getconf: str, ldd: str, android: str) -> tuple[str, tuple[int, int] | None]:
    if android:
        return "bionic", None
    for text in (getconf, ldd):
        match = _GLIBC.search(text)
        if match:
            return f"glibc {match[1]}.{match[2]}", (int(match[1]), int(match[2]))
    return ("musl", None) if "musl" in ldd else ("", None)


def _page(getconf: str, smaps: str) -> int | None:
    match = re.search(r"(\d{1,6}) kB", smaps)
    return _whole(getconf) or (int(match[1]) * 1024 if match else None)


def _memory(text: str) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    return {m[1]: int(m[2]) * 1024 for m in re.finditer(r"^(\w{1,30}): +(\d{1,12}) kB$", text, re.MULTILINE)}


def _read_speed(text: str) -> float | None:
    """From "bytes uptime uptime"; None where the disk could not be read past the cache, or too fast to tell."""
    parts = [_number(part) for part in text.split(" ")]
    if len(parts) != 3 or parts[0] is None or parts[1] is None or parts[2] is None:
        return None
    n_bytes, seconds = parts[0], parts[2] - parts[1]
    return n_bytes / seconds if n_bytes >= 8 << 20 and seconds >= 0.02 else None


def _governor(line: str) -> Governor:
    name, *rest = line.split(" ")
    numbers = [_whole(part) for part in rest[:2]] + [0, 0]
    return Governor(name[:30], numbers[0], numbers[1], " ".join(rest[2:])[:60])


def _temperatures(lines: Sequence[str]) -> list[tuple[str, float]]:
    """(zone, °C); the kernel gives thousandths. What no processor reaches is a sensor that does not work."""
    found = []
    for line in lines:
        value, _, name = line.partition(" ")
        number = _number(value)
        if number is not None and -40_000 < number < 150_000 and number != 0:
            found.append((name[:40] or "thermal zone", number / 1000))
    return found


def _pairs(lines: Sequence[str]) -> list[tuple[int, int]]:
    return [(_whole(a), _whole(b)) for a, _, b in (line.partition(" ") for line in lines) if a and b]


def _slots(lines: Sequence[str]) -> list[Slot]:
    found = []
    for line in lines:
        parts = line.split(" ", 2)
        if len(parts) == 3:
            found.append(Slot(parts[2], parts[1], parts[0] == "whole"))
    return found
