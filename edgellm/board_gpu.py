"""Whether a board has a GPU that Vulkan reaches: its driver, the loader, and the right to open the device."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.errors import UnsuitableError
from edgellm.remote import Remote

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
    if lack is not None and device in ("vulkan", "split"):
        raise UnsuitableError(
            f"{remote.name} has no GPU that could compute: {lack}; or use --device cpu, or both, which falls back"
        )
    return f"{lack}; until then the processor computes" if lack is not None else None
