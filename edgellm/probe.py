"""What a board says about itself, and whether a bundle fits it. Nothing is sent before this has been checked."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgellm.bundle import Bundle
from edgellm.errors import CommandError, UnsuitableError
from edgellm.remote import Remote
from edgellm.terminal import size

_SCRIPT = r"""
echo "home: $HOME"
echo "machine: $(uname -m)"
shell=/bin/sh; [ -e "$shell" ] || shell=/system/bin/sh
echo "shell_class: $(od -An -tu1 -j4 -N1 "$shell" 2>/dev/null)"
place="$HOME/.edgellm"; [ -d "$place" ] || place="$HOME"
df -Pk "$place" | { read -r header; read -r line; echo "df: $line"; }
cat /proc/meminfo /proc/cpuinfo
"""
_DF = re.compile(r" +\d+ +\d+ +(\d+) +\d+% ")  # blocks, used, available, capacity
_ARCHES = {"aarch64": "aarch64", "arm64": "aarch64", "armv7l": "armv7", "armv8l": "armv7", "x86_64": "x86_64"}
_RUNTIME_BYTES = 8 << 20  # program, stacks, tokenizer tables, what libc takes
_DEFAULT_CONTEXT = 4096  # of ellm_context_open
_DISK_SLACK_BYTES = 1 << 20  # directories, manifest, stamp


@dataclass(frozen=True)
class Facts:
    """home: absolute; arch: of programs that run there; memory and disk in bytes at the time of asking."""

    home: str
    arch: str
    cpu_features: frozenset[str]
    memory_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int


def probe(remote: Remote) -> Facts:
    """Asks the board. Raises CommandError if the answer makes no sense."""
    values: dict[str, str] = {}
    features: set[str] | None = None
    for line in remote.script(_SCRIPT).text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("Features", "flags"):  # one line per core: only what all of them have counts
            features = set(value.split()) if features is None else features & set(value.split())
        else:
            values.setdefault(key.strip(), value.strip())
    features = features or set()
    machine = values.get("machine", "")
    arch = _ARCHES.get(machine, machine)
    if arch == "aarch64" and values.get("shell_class") == "1":  # ELFCLASS32: 32-bit system on a 64-bit kernel
        arch = "armv7"
        features |= {"neon", "vfpv3", "vfpv4", "half"}  # every ARMv8-A core runs these in its 32-bit state
    home, disk = values.get("home", ""), _DF.search(values.get("df", ""))
    memory = [values.get(key, "").removesuffix(" kB") for key in ("MemTotal", "MemAvailable")]
    if not home.startswith("/") or disk is None or not all(number.isdigit() for number in memory):
        raise CommandError(
            f"{remote.name}: the board does not say where its home is, or how much memory and disk it has; edgellm "
            "needs a Linux shell with df, od and cat, and /proc/meminfo"
        )
    total, available, free = (int(number) * 1024 for number in (*memory, disk[1]))
    return Facts(home, arch, frozenset(features), total, available, free)


def home_of(remote: Remote) -> str:
    """The home of the board's user. Raises CommandError if it does not say."""
    home = remote.script('printf %s "$HOME"').text
    if not home.startswith("/"):
        raise CommandError(f"{remote.name}: the board does not say where its home is; set HOME there")
    return home


def needed_memory_bytes(bundle: Bundle) -> int:
    """Weights, arena, and a KV cache as large as the runtime makes it by default."""
    memory, model = bundle.manifest["memory"], bundle.manifest["model"]
    n_tokens = min(int(model.get("context_length", _DEFAULT_CONTEXT)), _DEFAULT_CONTEXT)
    kv = int(memory.get("kv_bytes_per_token", 0)) * n_tokens + int(memory.get("state_bytes_per_session", 0))
    return int(memory.get("weight_bytes", 0)) + int(memory.get("arena_bytes", 0)) + kv + _RUNTIME_BYTES


def check_fit(bundle: Bundle, facts: Facts, name: str) -> str | None:
    """Raises UnsuitableError, with numbers, if the bundle cannot run on the board called `name`.

    Returns a warning if it can, but will be slow, else None.
    """
    target = bundle.manifest["target"]
    if target.get("arch") != facts.arch:
        raise UnsuitableError(
            f"{name} runs {facts.arch} programs, but {bundle.path} was compiled for {target.get('arch')}; "
            "compile the model for this board"
        )
    if missing := [feature for feature in target.get("cpu_features", []) if feature not in facts.cpu_features]:
        raise UnsuitableError(
            f"the CPU of {name} lacks {', '.join(missing)}, which {bundle.path} was compiled for (tier {bundle.tier}); "
            "compile the model for this board"
        )
    needed = needed_memory_bytes(bundle)
    if needed > facts.memory_bytes:
        raise UnsuitableError(
            f"{bundle.name} needs {size(needed)} of memory on {name}, which has {size(facts.memory_bytes)}; "
            "use a smaller model or scheme"
        )
    if needed > facts.memory_available_bytes:
        return (
            f"{bundle.name} needs {size(needed)} of memory and {size(facts.memory_available_bytes)} are available on "
            f"{name} now; it will read weights from disk again and again unless other programs end"
        )
    return None


def check_disk(needed_bytes: int, facts: Facts, name: str) -> None:
    """Raises UnsuitableError if `needed_bytes` do not fit on the board's disk."""
    if needed_bytes + _DISK_SLACK_BYTES > facts.disk_free_bytes:
        raise UnsuitableError(
            f"no space on {name}: {size(needed_bytes + _DISK_SLACK_BYTES)} are needed in {facts.home}/.edgellm, "
            f"{size(facts.disk_free_bytes)} are free; remove files there, or what no model needs with `edgellm gc`"
        )
