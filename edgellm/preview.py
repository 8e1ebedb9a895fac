"""What a deployment would do to a board, found out without changing anything there; and two versions compared."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.board_session import Survey, ask_once, read_survey, root_of
from edgellm.bundle import MANIFEST, Bundle, sha256_of
from edgellm.deployment import BESIDE
from edgellm.errors import CommandError, RuntimeFailedError, UnsuitableError
from edgellm.probe import Facts, check_disk, check_fit
from edgellm.remote import Remote
from edgellm.terminal import one_line
from edgellm.trust import Demand, admit

_MANIFEST_BYTES = 8 << 20


@dataclass(frozen=True)
class Preview:
    """version: the name of the slot it would be in; current: of the one in use now, None without one.

    needed_bytes would be sent; note: what the deployment would say.
    """

    model: str
    version: str
    current: str | None
    needed_bytes: int
    note: str | None

    @property
    def changes(self) -> bool:
        return self.current != self.version or self.needed_bytes > 0


def look(remote: Remote, home: str) -> Survey:
    """What a board has; nothing where nothing was ever deployed, or where what is there cannot be asked."""
    try:
        return read_survey(ask_once(remote, home, "survey"), remote.name)
    except UnsuitableError:
        return Survey("", "", 0)
    except RuntimeFailedError as error:
        if error.name != "USAGE":  # the program there is older than surveys: a deployment replaces it
            raise
        return Survey("", "", 0)


def preview(bundle: Bundle, remote: Remote, name: str, facts: Facts, demand: Demand) -> Preview:
    """Raises what `deployment.deploy` would raise before the first byte, for the same reasons."""
    note = check_fit(bundle, facts, remote.name)
    admit(bundle, remote, facts.home, demand)
    survey = look(remote, facts.home)
    manifest = bundle.path / MANIFEST
    files = {file.sha256: file.n_bytes for file in bundle.files} | {bundle.sha256: manifest.stat().st_size}
    for beside in (bundle.path / name for name in BESIDE):
        if beside.is_file():
            files[sha256_of(beside)] = beside.stat().st_size
    missing = sum(n_bytes for sha256, n_bytes in files.items() if survey.store.get(sha256) != n_bytes)
    check_disk(missing, facts, remote.name)
    model = survey.models.get(name)
    return Preview(name, bundle.sha256[:16], model.current if model else None, missing, note)


def manifest_in_use(remote: Remote, home: str, model: str) -> dict[str, Any] | None:
    """manifest.json of the version that a board uses; None where there is none that can be read."""
    path = posixpath.join(root_of(home), "models", model, "current", MANIFEST)
    result = remote.run(["cat", path], limit_bytes=_MANIFEST_BYTES)
    if result.status != 0:
        return None
    try:
        manifest = json.loads(result.stdout)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{remote.name}: {path} is not JSON: {one_line(str(error))}; deploy it again") from error
    return manifest if isinstance(manifest, dict) else None


def described(manifest: Mapping[str, Any] | None, version: str | None) -> str:
    """A version in lines for people and for diff: what it is, then each file with its size and SHA-256."""
    if manifest is None or version is None:
        return ""
    lines = [f"version: {version}"]
    for section, key in (("model", "name"), ("scheme", "name"), ("scheme", "kv"), ("target", "tier")):
        lines.append(f"{section}.{key}: {_entry(manifest, section).get(key)}")
    lines += [f"memory.{key}: {value}" for key, value in sorted(_entry(manifest, "memory").items())]
    lines.append(f"tool: {_entry(manifest, 'provenance').get('tool')}")
    for path, file in sorted(_entry(manifest, "files").items()):
        if isinstance(file, Mapping):
            lines.append(f"{path}: {file.get('bytes')} bytes, sha256 {str(file.get('sha256'))[:16]}")
    return "".join(f"{one_line(line, 200)}\n" for line in lines)


def _entry(manifest: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    found = manifest.get(section)
    return found if isinstance(found, Mapping) else {}
