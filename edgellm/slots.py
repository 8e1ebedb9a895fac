"""The models on a board: ~/.edgellm/models/<name>/<first 16 hex digits of the manifest's SHA-256>/ is a slot.

A slot is complete whenever it has that name: it is built as <digits>.part, flushed, checked, and then renamed.
`current` is a symbolic link to the slot in use and is replaced by renaming another link over it, so at any moment,
power cuts included, it names one whole model.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgellm.bundle import DIGEST, MANIFEST, Bundle
from edgellm.remote import FLUSH, Remote

PART = ".part"

_SURVEY = r"""
cd "$1" 2>/dev/null || exit 0
printf 'current %s\n' "$(readlink current)"
for folder in */; do
    folder=${folder%/}
    [ -d "$folder" ] && [ ! -L "$folder" ] || continue
    printf 'slot %s\n' "$folder"
    (cd "$folder" && find . -type f -exec stat -c 'file %s %n' {} +)
    if [ -f "$folder/manifest.json" ] && [ "${folder%.part}" = "$folder" ]; then
        printf 'manifest %s\n' "$(wc -c <"$folder/manifest.json")"
        cat "$folder/manifest.json"
    fi
done
"""


@dataclass(frozen=True)
class Slot:
    """A folder of the board. sizes: bytes by path; digests: SHA-256 by path, as its manifest claims."""

    name: str
    sizes: dict[str, int]
    digests: dict[str, str]


@dataclass(frozen=True)
class Survey:
    """What there is of one model on the board. current: name of the slot in use, None if there is none."""

    current: str | None
    slots: dict[str, Slot]

    def holding(self, sha256: str, n_bytes: int) -> tuple[str, str] | None:
        """(slot, path) of a complete file with this content, as far as manifests and sizes tell."""
        for slot in self.slots.values():
            for path, digest in slot.digests.items():
                if digest == sha256 and slot.sizes.get(path) == n_bytes:
                    return slot.name, path
        return None


def slot_name(bundle: Bundle) -> str:
    return bundle.sha256[:16]


def content_of(bundle: Bundle) -> list[tuple[str, int]]:
    """(path, bytes) of everything that is sent: what the manifest lists, then the manifest itself."""
    own = [(name, (bundle.path / name).stat().st_size) for name in (MANIFEST, DIGEST)]
    return [(file.path, file.n_bytes) for file in bundle.files] + own


def is_complete(slot: Slot, bundle: Bundle) -> bool:
    """True if every file of the bundle lies in the slot with its right size."""
    return all(slot.sizes.get(path) == n_bytes for path, n_bytes in content_of(bundle))


class ModelFolder:
    """One model's folder on a board. name: of the model; home: of the board's user."""

    def __init__(self, remote: Remote, home: str, name: str) -> None:
        self._remote = remote
        self.path = posixpath.join(home, ".edgellm", "models", name)

    def slot_path(self, slot: str) -> str:
        return posixpath.join(self.path, slot)

    def survey(self) -> Survey:
        """Reads the folder; empty if it does not exist."""
        data = self._remote.script(_SURVEY, self.path).stdout
        current: str | None = None
        slots: dict[str, Slot] = {}
        slot = Slot("", {}, {})
        while data:
            line, _, data = data.partition(b"\n")
            key, _, value = line.decode("utf-8", "surrogateescape").partition(" ")
            if key == "current":
                current = value or None
            elif key == "slot":
                slot = slots[value] = Slot(value, {}, {})
            elif key == "file":
                n_bytes, _, path = value.partition(" ")
                slot.sizes[path.removeprefix("./")] = int(n_bytes) if n_bytes.isdigit() else -1
            elif key == "manifest" and value.strip().isdigit():
                manifest, data = data[: int(value)], data[int(value) :]
                slot.digests.update(_digests(manifest))
        return Survey(current if current in slots else None, slots)

    def prepare(
        self, part: str, links: Iterable[tuple[str, str, str]], removals: Iterable[str], folders: set[str]
    ) -> None:
        """Makes the folder `part`, with its sub-folders; removes `removals` in it; links (slot, path, new path)."""
        lines = ['cd "$1"; mkdir -p "$2"; cd "$2"']
        arguments: list[str] = []

        def argument(text: str) -> str:
            arguments.append(text)
            return f'"${{{len(arguments) + 2}}}"'

        lines += [f"mkdir -p {argument('./' + folder)}" for folder in sorted(folders)]
        lines += [f"rm -f {argument('./' + path)}" for path in removals]
        for slot, path, new_path in links:
            source, target = argument(posixpath.join("..", slot, path)), argument("./" + new_path)
            # A file system without hard links (vfat, some FUSE) costs a copy instead.
            lines.append(f"rm -f {target}; ln {source} {target} 2>/dev/null || cp {source} {target}")
        self._remote.script('mkdir -p "$1"\n' + "\n".join(lines), self.path, part, *arguments)

    def digests(self, slot: str, paths: Sequence[str]) -> dict[str, str]:
        """SHA-256 of files in a slot as the board reads them now."""
        script = 'cd "$1"; shift; sha256sum -- "$@"'
        text = self._remote.script(script, self.slot_path(slot), *paths, silence_s=600).text
        found = {}
        for line in text.splitlines():
            digest, _, path = line.partition("  ")
            found[path] = digest
        return found

    def activate(self, part: str, slot: str) -> None:
        """Gives `part` its final name, points `current` to it, and removes what is then out of use.

        Everything is on the disk before the link moves, and the link is before anything is removed.
        """
        script = r"""
cd "$1"
if [ -d "$2" ]; then
    find "./$2" -type d | while IFS= read -r folder; do flush "$folder"; done
    if [ -d "$3" ]; then mv "$3" "$3.old"; fi
    mv "$2" "$3"
fi
flush .
if [ "$(readlink current)" != "$3" ]; then
    rm -f .current.new
    ln -s "$3" .current.new
    mv -T .current.new current || { rm -f .current.new; exit 1; }
    flush .
fi
for folder in */; do
    folder=${folder%/}
    if [ ! -L "$folder" ] && [ "$folder" != "$3" ]; then rm -rf "./$folder"; fi
done
"""
        self._remote.script(FLUSH + script, self.path, part, slot, silence_s=300)

    def remove(self, part: str) -> None:
        """Removes an unfinished slot, and the model's folder if nothing else is in it."""
        self._remote.script(
            'cd "$1" 2>/dev/null || exit 0; rm -rf "./$2"; rmdir "$1" 2>/dev/null || :', self.path, part
        )


def _digests(manifest: bytes) -> dict[str, str]:
    """What a manifest on the board claims; nothing if it is damaged, so that its files are sent again."""
    try:
        files = json.loads(manifest)["files"]
        return {str(path): str(entry["sha256"]) for path, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
