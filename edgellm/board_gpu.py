"""Whether a board has a GPU that Vulkan reaches: driver, loader, the right to open the device; and what it can."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass, replace

from edgellm import cache, gpu_facts, side_program
from edgellm.boards import Board
from edgellm.errors import CommandError, UnsuitableError
from edgellm.gpu_facts import FOUND
from edgellm.remembered import remember_gpu
from edgellm.remote import Remote
from edgellm.runtime_program import PROGRAM
from edgellm.terminal import one_line

_SCRIPT = r"""
for file in /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json /vendor/lib*/hw/vulkan.*.so; do
    [ -e "$file" ] && echo "driver ${file##*/}"
done
for file in /usr/lib/libvulkan.so* /usr/lib/*/libvulkan.so* /lib/*/libvulkan.so* /system/lib*/libvulkan.so; do
    [ -e "$file" ] && { echo "loader $file"; break; }
done
for file in /dev/dri/renderD*; do
    [ -e "$file" ] && echo "render $file $([ -r "$file" ] && [ -w "$file" ] && echo usable)"
done
true
"""


ONLY_GPU = ("vulkan", "split")
"""Devices of a bundle that cannot do without the GPU."""


@dataclass(frozen=True)
class Lack:
    """What keeps a board's GPU from being used, and what mends it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def judge(drivers: bool, loader: str, render: list[tuple[str, bool]]) -> Lack | None:
    """loader: its path, or nothing. render: device files, and whether this user may open them; Android's drivers open
    others."""
    if not drivers:
        return Lack("no Vulkan driver", "Debian: sudo apt install mesa-vulkan-drivers; a phone has its own or none")
    if not loader:
        return Lack("a Vulkan driver, but no loader", "Debian: sudo apt install libvulkan1")
    if render and not loader.startswith("/system/") and not any(usable for _, usable in render):
        return Lack(f"{render[0][0]} is not open to this user", "sudo usermod -aG render $USER, then log in again")
    return None


def look(remote: Remote) -> Lack | None:
    """Asks the board. None: nothing seems to be missing; whether it works, the bundle's own program finds out there."""
    lines = [words for line in remote.script(_SCRIPT).text.splitlines() if len(words := line.split()) > 1]
    render = [(words[1], len(words) > 2) for words in lines if words[0] == "render"]
    loader = next((words[1] for words in lines if words[0] == "loader"), "")
    return judge(any(words[0] == "driver" for words in lines), loader, render)


def check(remote: Remote, device: str) -> str | None:
    """What to say of a board that gets a bundle for `device` (of its manifest); None where all is well.

    Raises UnsuitableError where only a GPU is to compute and there is none to be used.
    """
    lack = None if device == "cpu" else look(remote)
    if lack is not None and device in ONLY_GPU:
        raise UnsuitableError(
            f"{remote.name} has no GPU that could compute: {lack}; or use --device cpu, or both, which falls back"
        )
    return f"{lack}; until then the processor computes" if lack is not None else None


def ask(board: Board, remote: Remote, device: str, tell: Callable[[str], None]) -> Board:
    """The board with what its GPU's driver allows in place of what the manifest says; a name of its own keeps that.

    The board as it is where no driver answers, or there is nothing but programs that imitate a GPU. tell: gets a line.
    Raises UnsuitableError where only a GPU is to compute and all lack what every bundle needs, BoardError if none is
    known.
    """
    from crosscompile.runtime import build_runtime

    section = board.vulkan
    if section is None or section.schedule == FOUND:  # of this machine, whose driver is asked anyway
        return board
    program = build_runtime(board.gpu_target(), cache=cache.root() / "runtime")
    folder = side_program.install(remote, program)
    done = remote.run([posixpath.join(folder, PROGRAM), "gpus"])
    said = f"kernels are made for what boards/{board.virtual or board.id}.toml says"
    if done.status != 0:
        tell(f"its driver could not be asked ({one_line(done.stderr.strip(), 200)}); {said}")
        return board
    try:
        devices = gpu_facts.read(done.text, remote.name)
    except CommandError as error:
        tell(f"its driver could not be asked ({error}); {said}")
        return board
    gpu = gpu_facts.chosen(devices)
    if gpu is not None:
        asked = gpu_facts.asked(section, gpu)
        tell(gpu_facts.describe(asked))
        if board.instance is not None:
            remember_gpu(board.instance, board.whereabouts, asked)
        return replace(board, vulkan=asked)
    lacking = ", ".join(f"{each.name} lacks {each.lacks}" for each in devices if each.lacks is not None)
    if lacking and device in ONLY_GPU:
        raise UnsuitableError(
            f"{remote.name} has no GPU that could compute: {lacking}; update its driver, or use --device cpu"
        )
    if lacking:
        tell(f"{lacking}; until its driver is updated the processor computes")
        return board
    found = ", ".join(each.name for each in devices) or "nothing"
    tell(f"Vulkan finds no GPU there ({found}); {said}")
    return board
