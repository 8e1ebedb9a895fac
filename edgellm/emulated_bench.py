"""Instructions per token on a board's processor, ours and the peer's, counted by an emulator.

A count does not depend on how busy this machine is, and says nothing of caches and memory: it ranks programs of one
kind, it does not foretell tokens per second. Both programs are static and run with one thread, since a thread that
waits would be counted too; what is constant (opening the model) goes away in the difference of two runs.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosscompile.checkpoint import Checkpoint
from crosscompile.data import data_path
from crosscompile.runtime import build_runtime, compiler, run_compiler
from crosscompile.target import target_of_tier
from edgellm import cache, virtual_parts
from edgellm.bundle import Bundle
from edgellm.compile import compile_checkpoint
from edgellm.cross_peer import Processor, steps_program
from edgellm.errors import ModelError, PeerError
from edgellm.golden import host_target
from edgellm.llama_cpp import gguf_of
from edgellm.peer_bench import weight_bytes_per_token
from edgellm.precision import Options
from edgellm.terminal import one_line

Progress = Callable[[str, int, int], None]

PACKAGES = (
    *("qemu-user", "libc6", "libcapstone4", "libglib2.0-0", "libpcre2-8-0", "liburing2", "libnuma1", "zlib1g"),
    *("libgcc-s1", "libgnutls30", "libp11-kit0", "libidn2-0", "libunistring2", "libtasn1-6", "libnettle8"),
    *("libhogweed6", "libgmp10", "libffi8"),
)
"""QEMU 7.2 and what it is linked with: the newer one of the virtual boards is static and takes no plugins."""

_PLUGIN_VERSION = 1
"""Of QEMU's plugin interface, in 7.2."""

DECODE = (8, 24)
"""Tokens decoded in the two runs whose difference counts."""

PREFILL = (64, 128)
"""Tokens of the prompt in the two runs whose difference counts: two whole steps of ours, one batch of the peer's."""


@dataclass(frozen=True)
class Counter:
    """QEMU's user-mode emulators with a plugin that counts. root: Debian's packages unpacked; plugin: insns.so."""

    root: Path
    plugin: Path

    def count(self, processor: Processor, command: Sequence[str], blocks: Path | None = None) -> int:
        """Instructions of a command, from its start to its end. Raises PeerError if it fails.

        blocks: a file that gets every block of them, as runtime_c/probe/insns.c says.
        """
        with tempfile.NamedTemporaryFile(prefix="edgellm-insns-") as log:
            emulator = [str(self.root / "usr/bin" / processor.emulator), "-cpu", processor.cpu]
            option = f",blocks={str(blocks).replace(',', ',,')}" if blocks else ""
            plugin = ["-d", "plugin", "-D", log.name, "-plugin", f"{self.plugin}{option}"]
            whole = [*loaded(self.root), *emulator, *plugin, *command]
            done = subprocess.run(whole, capture_output=True, check=False, stdin=subprocess.DEVNULL)
            found = re.findall(r"insns: (\d+)", Path(log.name).read_text(errors="replace"))
        if done.returncode or not found:
            last = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise PeerError(f"{processor.name}: `{' '.join(command[:2])} …` failed: {one_line(last[-1])}")
        return int(found[-1])


def loaded(root: Path, *more: str) -> list[str]:
    """What runs a program of unpacked packages of Debian's with their libraries. more: further folders of them."""
    loader = next((root / "lib").glob("*/ld-linux-*.so.*"))
    folders = [*(f"{part}/{loader.parent.name}" for part in ("lib", "usr/lib")), *more]
    return [str(loader), "--library-path", ":".join(str(root / folder) for folder in folders)]


def counter(progress: Progress) -> Counter:
    """The emulators, from Debian's mirror, and the plugin. Raises VirtualBoardError, CodegenError, PeerError."""
    target = host_target()
    if target is None:
        raise ModelError("instructions are counted on Linux, on a CPU that has a tier")
    if reason := virtual_parts.missing_tool():
        raise PeerError(f"instructions are counted with QEMU: {reason}")
    directory = cache.root() / "peers"
    directory.mkdir(parents=True, exist_ok=True)

    def show(what: str, fraction: float) -> None:
        progress(what, round(fraction * 1000), 1000)

    root = virtual_parts.ensure_packages(directory, "qemu", PACKAGES, "fetching QEMU 7.2 (20 MB)", show)
    source = data_path("runtime_c") / "probe" / "insns.c"
    plugin = directory / f"insns-{cache.key_of({'source': source.read_text()})[:12]}.so"
    if not plugin.is_file():
        with tempfile.TemporaryDirectory(dir=directory, prefix=".building-") as name:
            flags = ["-std=c11", "-O2", "-shared", "-fPIC", f"-DPLUGIN_VERSION={_PLUGIN_VERSION}", "-Wl,-z,undefs"]
            run_compiler([*compiler(target), *flags, str(source), "-o", "insns.so"], Path(name))
            (Path(name) / "insns.so").rename(plugin)
    return Counter(root, plugin)


Command = Callable[[int, int], list[str]]
"""(tokens of the prompt, tokens decoded) -> what runs a side's program."""


@dataclass(frozen=True)
class Sides:
    """A model compiled for a processor, and the same for the peer."""

    bundle: Bundle
    commands: dict[str, Command]


def sides(source: Checkpoint, name: str, options: Options, processor: Processor, progress: Progress) -> Sides:
    """Both sides of a model, built if need be. Raises PeerError and what compiling raises."""
    target = target_of_tier(processor.tier)
    bundle = compile_checkpoint(source, name, target, options, progress=progress).bundle
    program = build_runtime(target, "musl", cache.root() / "runtime")
    steps, file = steps_program(processor, progress), gguf_of(source, bundle, progress)

    def ours(prompt: int, decode: int) -> list[str]:
        context = max(256, prompt + decode)
        sizes = ["--prompt", str(prompt), "--generate", str(decode), "--repeat", "1", "--context", str(context)]
        return [str(program), "bench", str(bundle.path), *sizes, "--threads", "1", "--json"]

    def theirs(prompt: int, decode: int) -> list[str]:
        return [str(steps), str(file), "1", str(prompt), str(decode)]

    return Sides(bundle, {"edgellm": ours, "peer": theirs})


def counts(
    source: Checkpoint,
    name: str,
    label: str,
    options: Options,
    processor: Processor,
    count: Counter,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Both sides' counts of one model on one processor, as edgellm.peer_result's document has them."""
    both = sides(source, name, options, processor, progress)
    weights = weight_bytes_per_token(both.bundle)
    found = []
    for side, command in both.commands.items():
        progress(f"counting {name}, {label}, {processor.name}, {side}", 0, 0)
        entry: dict[str, Any] = {"model": name, "match": label, "cpu": processor.name, "side": side}
        for kind, (low, high) in (("decode", DECODE), ("prefill", PREFILL)):
            runs = [command(n, 1) if kind == "prefill" else command(1, n) for n in (low, high)]
            few, many = (count.count(processor, run) for run in runs)
            entry[kind] = (many - few) / (high - low)
        found.append({**entry, "weight_bytes_per_token": weights})
    return found
