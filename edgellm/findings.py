"""What is well with a board and what is not, each with its remedy, from what it said (edgellm.examination)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from crosscompile.errors import TargetError
from crosscompile.target import target_for
from edgellm import board_gpu
from edgellm.boards import Board
from edgellm.examination import Examination
from edgellm.terminal import size

OK, NOTE, WARNING, ERROR = "ok", "note", "warning", "error"
LEVELS = (OK, NOTE, WARNING, ERROR)

GLIBC_FLOOR = (2, 28)
"""What edgellm-rt is linked against (crosscompile.runtime)."""

_TIGHT_DISK, _FULL_DISK = 2_000_000_000, 200_000_000
_SLOW_DISK = 25_000_000

THROTTLED_BITS = (
    (0, "under-voltage", WARNING, "use the power supply that the board's maker names, and a short, thick cable"),
    (1, "clock capped", WARNING, "cool the board, or give it a stronger power supply"),
    (2, "throttled", WARNING, "cool the board, or give it a stronger power supply"),
    (3, "soft temperature limit", WARNING, "cool the board: a heat sink or a fan"),
)
"""Raspberry Pi documentation, vcgencmd get_throttled: bit, meaning, level, remedy. 16 bits higher: since the boot."""


@dataclass(frozen=True)
class Finding:
    """subject: what was looked at; text: what was found; remedy: what to do, empty where nothing is."""

    subject: str
    level: str
    text: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def worst(findings: list[Finding]) -> str:
    return max((finding.level for finding in findings), key=LEVELS.index, default=OK)


def board_findings(seen: Examination, board: Board) -> list[Finding]:
    """Every finding about a board, in the order in which they matter."""
    return [finding for rule in RULES for finding in rule(seen, board)]


def _system(seen: Examination, board: Board) -> list[Finding]:
    what = ", ".join(part for part in (seen.model, seen.os, f"{seen.system} {seen.kernel}".strip()) if part)
    if seen.system != "Linux":
        return [Finding("system", ERROR, f"{what}", "edgellm runs on Linux and Android; use such a board")]
    if seen.lacks:
        lacking = ", ".join(seen.lacks)
        return [
            Finding(
                "system",
                ERROR,
                f"{what}; commands missing: {lacking}",
                "install busybox or coreutils, tar and findutils",
            )
        ]
    return [Finding("system", OK, what)]


def _architecture(seen: Examination, board: Board) -> list[Finding]:
    bits = f"{seen.bits}-bit userland" if seen.bits else "userland of unknown width"
    text = f"{seen.machine} kernel, {bits}"
    if seen.arch == board.arch:
        return [Finding("architecture", OK, f"{text}: runs {seen.arch} programs")]
    if seen.arch == "armv7" and board.arch == "aarch64":
        remedy = (
            "install the 64-bit system, which is also faster, or use the 32-bit type: --board rpi2"
            if seen.machine in ("aarch64", "arm64", "armv8l")
            else "use a board type for armv7, such as --board rpi2"
        )
        return [
            Finding("architecture", ERROR, f"{text}: runs armv7 programs, {board.id} is compiled for 64 bits", remedy)
        ]
    remedy = "choose the right type with --board; `edgellm boards` lists them"
    return [Finding("architecture", ERROR, f"{text}: runs {seen.arch} programs, {board.id} is {board.arch}", remedy)]


def _libc(seen: Examination, board: Board) -> list[Finding]:
    floor = ".".join(map(str, GLIBC_FLOOR))
    if board.os == "android" or seen.libc == "bionic":
        if board.os == "android":
            return [Finding("C library", OK, f"{seen.libc or 'unknown'}; programs for Android bring their own")]
        return [Finding("C library", ERROR, "Android's", "use --board android-arm64, whose programs bring their own")]
    if seen.glibc is not None:
        if seen.glibc < GLIBC_FLOOR:
            text = f"{seen.libc} is older than {floor}"
            return [
                Finding(
                    "C library", ERROR, text, "install a system of 2019 or newer (Debian 10, Ubuntu 18.10 and later)"
                )
            ]
        return [Finding("C library", OK, seen.libc)]
    if seen.libc == "musl":
        remedy = "install gcompat (`apk add gcompat`), or a system with glibc"
        return [Finding("C library", ERROR, f"musl; edgellm-rt needs glibc {floor} or newer", remedy)]
    return [
        Finding("C library", WARNING, "unknown", f"see that it is glibc {floor} or newer: `ldd --version` on the board")
    ]


def _page(seen: Examination, board: Board) -> list[Finding]:
    if seen.page_bytes is None:
        return []
    text = f"{seen.page_bytes // 1024} KB"
    if seen.page_bytes > 65536:
        return [
            Finding("page size", ERROR, text, "boot a kernel with pages of 64 KB or less; bundles are aligned to that")
        ]
    return [Finding("page size", OK, text)]


def _processor(seen: Examination, board: Board) -> list[Finding]:
    if seen.arch != board.arch:
        return []
    if not seen.features:
        return [Finding("processor", WARNING, "it does not say what it can do", "see that /proc/cpuinfo is readable")]
    tier = board.target().tier
    lacking = [name for name in tier.requires if name not in seen.features]
    if lacking:
        try:
            other = target_for(seen.arch, seen.features, board.os).tier.name
            remedy = (
                f"compile for tier {other}: use a board type whose cpu_features it has, or write one (boards/README.md)"
            )
        except TargetError as error:
            remedy = f"no tier fits ({error}); use another board"
        text = f"lacks {', '.join(lacking)}, which tier {tier.name} of {board.id} needs"
        return [Finding("processor", ERROR, text, remedy)]
    unseen = [name for name in board.cpu_features if name not in seen.features]
    cores = f"{seen.cores} cores, " if seen.cores else ""
    found = [Finding("processor", OK, f"{cores}tier {tier.name}")]
    better = target_for(seen.arch, seen.features, board.os).tier.name
    if better != tier.name:
        found.append(
            Finding(
                "processor",
                NOTE,
                f"can run tier {better}, which {board.id} does not use",
                "a manifest of its own makes it faster (boards/README.md)",
            )
        )
    elif unseen:
        text = f"does not list {', '.join(unseen[:8])}{' …' if len(unseen) > 8 else ''} of {board.id}'s manifest"
        found.append(Finding("processor", NOTE, text, "nothing: no kernel needs them"))
    if 0 < seen.cores < board.n_cores and not board.virtual:
        text = f"{seen.cores} of {board.n_cores} cores are there"
        found.append(Finding("processor", WARNING, text, "look for maxcpus= or isolcpus= in the kernel's command line"))
    return found


def _memory(seen: Examination, board: Board) -> list[Finding]:
    if not seen.memory_bytes:
        return [Finding("memory", WARNING, "unknown", "see that /proc/meminfo is readable")]
    text = f"{size(seen.memory_bytes)}, {size(seen.available_bytes)} available"
    if seen.available_bytes < seen.memory_bytes // 4:
        return [Finding("memory", WARNING, text, "end other programs, or boot without a desktop")]
    return [Finding("memory", OK, text)]


def _disk(seen: Examination, board: Board) -> list[Finding]:
    found = []
    if not seen.writable:
        found.append(
            Finding("disk", ERROR, f"{seen.home} cannot be written to", "log in as a user with a home of their own")
        )
    if seen.disk_free_bytes is None:
        return [*found, Finding("disk", WARNING, "free space unknown", "see that `df -Pk ~` works on the board")]
    text = f"{size(seen.disk_free_bytes)} free"
    if seen.disk_free_bytes < _FULL_DISK:
        found.append(Finding("disk", ERROR, text, "remove files, or use a larger card"))
    elif seen.disk_free_bytes < _TIGHT_DISK:
        found.append(Finding("disk", NOTE, text, "a model of 1B needs about 700 MB in w4a8: `edgellm plan MODEL`"))
    else:
        found.append(Finding("disk", OK, text))
    if seen.read_bytes_per_s is None:
        found.append(
            Finding("disk", NOTE, "its read speed cannot be measured", "needs a file of 16 MB and dd with iflag=direct")
        )
    elif seen.read_bytes_per_s < _SLOW_DISK:
        seconds = 700e6 / seen.read_bytes_per_s
        text = f"reads {size(seen.read_bytes_per_s)}/s: a model of 700 MB takes {seconds:.0f} s to load"
        found.append(Finding("disk", WARNING, text, "use a faster card (A2), or a disk on USB 3 or NVMe"))
    else:
        found.append(Finding("disk", OK, f"reads {size(seen.read_bytes_per_s)}/s"))
    return found


def _governor(seen: Examination, board: Board) -> list[Finding]:
    if not seen.governors:
        return []
    names = ", ".join(dict.fromkeys(each.name for each in seen.governors))
    capped = [each for each in seen.governors if 0 < each.max_khz < each.top_khz * 0.98]
    found = []
    if any(each.name == "powersave" and each.top_khz for each in seen.governors) and seen.arch != "x86_64":
        remedy = "echo schedutil | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
        found.append(Finding("governor", WARNING, f"{names}: stays at the lowest clock", remedy))
    elif all(each.name == "performance" for each in seen.governors):
        found.append(Finding("governor", OK, names))
    else:
        text = f"{names}: the clock follows the load"
        found.append(Finding("governor", OK, text, "for even measurements, set it to performance"))
    for each in capped:
        text = f"cores {each.cores or '?'} are held to {each.max_khz / 1e6:.1f} of {each.top_khz / 1e6:.1f} GHz"
        remedy = "cool the board if it is hot; else raise scaling_max_freq, or arm_freq in config.txt"
        found.append(Finding("governor", WARNING, text, remedy))
    return found


def _temperature(seen: Examination, board: Board) -> list[Finding]:
    if not seen.temperatures_c:
        return []
    name, hottest = max(seen.temperatures_c, key=lambda zone: zone[1])
    limit = board.thermal.throttle_c if board.thermal else 80
    text = f"{hottest:.0f} °C ({name})"
    if hottest >= limit:
        return [
            Finding(
                "temperature", WARNING, f"{text}: slows down from {limit} °C", "cool the board: a heat sink or a fan"
            )
        ]
    if hottest >= limit - 10:
        return [Finding("temperature", NOTE, f"{text}, near {limit} °C", "a fan keeps it from slowing down under load")]
    return [Finding("temperature", OK, text)]


def _throttling(seen: Examination, board: Board) -> list[Finding]:
    found = []
    if any(state > 0 for state, most in seen.cooling if most):
        state, most = max(seen.cooling)
        text = f"the kernel slows the processor down now (state {state} of {most})"
        found.append(Finding("throttling", WARNING, text, "cool the board: a heat sink or a fan"))
    if seen.throttled is None:
        return found
    for bit, name, level, remedy in THROTTLED_BITS:
        if seen.throttled >> bit & 1:
            found.append(Finding("throttling", level, f"{name} now", remedy))
        elif seen.throttled >> (bit + 16) & 1:
            found.append(Finding("throttling", NOTE, f"{name} since the boot, not now", remedy))
    return found or [Finding("throttling", OK, "none since the boot")]


def _load(seen: Examination, board: Board) -> list[Finding]:
    if seen.load is None or seen.load < max(seen.cores, 1) * 0.5:
        return []
    return [Finding("load", NOTE, f"{seen.load:.1f} on {seen.cores} cores", "end them before you measure")]


def _vulkan(seen: Examination, board: Board) -> list[Finding]:
    if board.vulkan is None and not seen.icds:
        return []
    drivers = ", ".join(seen.icds[:4])
    if lack := board_gpu.judge(bool(seen.icds), seen.libvulkan, list(seen.render)):
        return [Finding("Vulkan", NOTE, lack.what, f"not needed for the processor; {lack.remedy}")]
    if board.vulkan is not None and board.vulkan.times_slower is not None:
        text = f"{drivers}; the GPU takes about {board.vulkan.times_slower} times as long as the processor"
        return [Finding("Vulkan", OK, f"{text}, which bundles for this board use")]
    return [Finding("Vulkan", OK, f"{drivers}; bundles made with --device vulkan or both use it")]


def _deployed(seen: Examination, board: Board) -> list[Finding]:
    found = []
    for slot in seen.slots:
        if slot.whole:
            found.append(Finding("model", OK, f"{slot.model}, slot {slot.name}"))
        else:
            text = f"{slot.model}: slot {slot.name} is not whole"
            found.append(Finding("model", ERROR, text, "deploy it again: `edgellm deploy`"))
    return found or [Finding("model", NOTE, "none is deployed", f"edgellm deploy --board {board.label} MODEL")]


RULES: tuple[Callable[[Examination, Board], list[Finding]], ...] = (
    _system,
    _architecture,
    _libc,
    _page,
    _processor,
    _memory,
    _disk,
    _governor,
    _temperature,
    _throttling,
    _load,
    _vulkan,
    _deployed,
)
