"""Whether a board has a GPU that Vulkan reaches: driver, loader, the right to open the device; and what it can."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgellm import cache, gpu_facts, side_program
from edgellm.boards import Board
from edgellm.errors import CommandError, UnsuitableError
from edgellm.gpu_facts import FOUND, Device
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
    section = board.vulkan
    if section is None or section.schedule == FOUND:  # of this machine, whose driver is asked anyway
        return board
    said = f"kernels are made for what boards/{board.virtual or board.id}.toml says"
    try:
        found = gpu_facts.verdict(section, _devices(board, remote))
    except CommandError as error:
        tell(f"its driver could not be asked ({error}); {said}")
        return board
    if found.section is not None:
        tell(found.text)
        if board.instance is not None:
            remember_gpu(board.instance, board.whereabouts, found.section)
        return replace(board, vulkan=found.section)
    if found.unfit and device in ONLY_GPU:
        raise UnsuitableError(
            f"{remote.name} has no GPU that could compute: {found.text}; update its driver, or use --device cpu"
        )
    tell(f"{found.text}; {'until its driver is updated the processor computes' if found.unfit else said}")
    return board


def answer(board: Board, remote: Remote, *, passing: bool = False) -> dict[str, Any]:
    """What Ansible hears of a board's GPU. passing: nothing is left on the board.

    devices   that Vulkan finds there, as gpu_facts.read took them
    gpu       the one that decides, in a line; None: `why` says why there is none
    unfit     no bundle for a GPU alone could run there
    """
    lack = look(remote)
    if lack is not None:
        return {"devices": [], "gpu": None, "why": str(lack), "unfit": True}
    try:
        devices = _devices(board, remote, passing=passing)
    except CommandError as error:
        return {"devices": [], "gpu": None, "why": f"its driver could not be asked ({error})", "unfit": False}
    found = gpu_facts.verdict(board.gpu(), devices)
    gpu, why = (found.text, None) if found.section is not None else (None, found.text)
    return {"devices": [asdict(device) for device in devices], "gpu": gpu, "why": why, "unfit": found.unfit}


def program_for(board: Board) -> Path:
    """The program that asks, built if need be. Raises BoardError if no GPU is known."""
    from crosscompile.runtime import build_runtime

    return build_runtime(board.gpu_target(), cache=cache.root() / "runtime")


def _devices(board: Board, remote: Remote, *, passing: bool = False) -> list[Device]:
    """Raises CommandError where the program cannot be run there, its driver fails, or what it says makes no sense."""
    bring = side_program.lent if passing else side_program.brought
    with bring(remote, program_for(board)) as folder:
        done = remote.run([posixpath.join(folder, PROGRAM), "gpus"])
    if done.status != 0:
        raise CommandError(one_line(done.stderr.strip(), 200))
    return gpu_facts.read(done.text, remote.name)
