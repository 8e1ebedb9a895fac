"""Bundles: the directory that is compiled once and deployed many times. runtime_c/FORMAT.md specifies its content."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import BundleError

FORMAT = 1
MANIFEST, DIGEST, STAMP, SIGNATURE = "manifest.json", "manifest.sha256", ".verified", "manifest.sig"
NOT_CONTENT = {MANIFEST, DIGEST, STAMP, SIGNATURE}
"""Files that the manifest does not list."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""

_REMEDY = "compile the bundle again"


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle: path relative to the bundle, size, and SHA-256 in hex."""

    path: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """A bundle directory whose manifest has been read and checked; `verify` checks the files themselves.

    sha256: of manifest.json, which names the whole content.
    """

    path: Path
    manifest: dict[str, Any]
    sha256: str
    files: tuple[BundleFile, ...]

    @property
    def name(self) -> str:
        return str(self.manifest["model"]["name"])

    @property
    def scheme(self) -> str:
        return str(self.manifest["scheme"]["name"])

    @property
    def tier(self) -> str:
        return str(self.manifest["target"]["tier"])

    @property
    def n_bytes(self) -> int:
        """Size of everything the manifest lists."""
        return sum(file.n_bytes for file in self.files)


def sha256_of(file: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file's content in hex, read in pieces of 4 MB."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
            if progress is not None:
                progress(len(piece))
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def content_files(directory: Path) -> list[str]:
    """Relative paths of a bundle's content, sorted; hidden files are no content."""
    found = (file.relative_to(directory) for file in directory.rglob("*") if file.is_file())
    shown = (path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))
    return sorted(name for name in shown if name not in NOT_CONTENT)


def seal(directory: Path, manifest: dict[str, Any], progress: Progress | None = None) -> Bundle:
    """Hashes every file below `directory` and writes manifest.json, manifest.sha256 and the verified stamp.

    manifest: everything but `format` and `files`. All files are on the disk when this returns.
    """
    names = content_files(directory)
    sizes = {name: (directory / name).stat().st_size for name in names}
    total, done = sum(sizes.values()), 0

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress(done, total)

    files = {name: {"bytes": sizes[name], "sha256": sha256_of(directory / name, count)} for name in names}
    text = json.dumps({"format": FORMAT, **manifest, "files": files}, indent=1, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    (directory / DIGEST).write_text(f"{digest}  {MANIFEST}\n")
    for name in (*names, MANIFEST, DIGEST):
        _sync(directory / name)
    bundle = read(directory)
    write_stamp(bundle)
    return bundle


def _stamp(bundle: Bundle) -> str:
    lines = [f"edgellm-verified 1 {bundle.sha256}"]
    for file in bundle.files:
        if file.path.startswith("weights/"):
            status = (bundle.path / file.path).stat()
            lines.append(f"{status.st_ino} {status.st_size} {status.st_ctime_ns} {file.path}")
    return "\n".join(lines) + "\n"


def write_stamp(bundle: Bundle) -> None:
    """Records that the files below weights/ were hashed and matched: inode, size and ctime of each."""
    partial = bundle.path / f"{STAMP}.partial"
    partial.write_text(_stamp(bundle))
    partial.replace(bundle.path / STAMP)


def is_stamped(bundle: Bundle) -> bool:
    """True if the stamp vouches for the weights and every other file matches its hash."""
    try:
        if (bundle.path / STAMP).read_text(encoding="utf-8", errors="replace") != _stamp(bundle):
            return False
        rest = [file for file in bundle.files if not file.path.startswith("weights/")]
        return all(sha256_of(bundle.path / file.path) == file.sha256 for file in rest)
    except OSError:
        return False


_MEMORY = ("weight_bytes", "arena_bytes", "kv_bytes_per_token")


def _is_safe(name: str) -> bool:
    return bool(name) and not name.startswith("/") and not {"", ".", ".."} & set(name.split("/")) and "\0" not in name


def _file(where: Path, name: str, entry: object) -> BundleFile:
    if not _is_safe(name) or not name.isprintable():
        raise BundleError(f"{where}: files: {name!r} is not a path inside the bundle; {_REMEDY}")
    n_bytes = entry.get("bytes") if isinstance(entry, dict) else None
    digest = entry.get("sha256") if isinstance(entry, dict) else None
    if type(n_bytes) is not int or not 0 <= n_bytes < 1 << 63 or not isinstance(digest, str) or len(digest) != 64:
        raise BundleError(f"{where}: files: {name!r} needs bytes and sha256; {_REMEDY}")
    return BundleFile(name, n_bytes, digest)


def read(path: str | Path) -> Bundle:
    """Reads and checks a bundle's manifest, not its other files. BundleError names what is wrong."""
    path = Path(path)
    if not path.is_dir():
        raise BundleError(f"{path} is not a directory; name a bundle made by `edgellm compile`")
    where = path / MANIFEST
    try:
        raw, digest_line = where.read_bytes(), (path / DIGEST).read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise BundleError(f"{path} is not a bundle: {error.filename} cannot be read ({error.strerror})") from error
    digest = hashlib.sha256(raw).hexdigest()
    if digest_line.split() != [digest, MANIFEST]:
        raise BundleError(f"{where} does not match {DIGEST}; {_REMEDY}")
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not JSON ({error}); {_REMEDY}") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{where} is not a JSON object; {_REMEDY}")
    if manifest.get("format") != FORMAT:
        raise BundleError(f"{where}: format {manifest.get('format')!r} is not read by this version; {_REMEDY}")
    for key in ("model", "scheme", "target", "files", "memory", "generation"):
        if not isinstance(manifest.get(key), dict):
            raise BundleError(f"{where}: {key} is missing or not an object; {_REMEDY}")
    for section, key in (("model", "name"), ("scheme", "name"), ("target", "tier")):
        if not isinstance(value := manifest[section].get(key), str) or not value.isprintable():
            raise BundleError(f"{where}: {section}.{key} is missing or not a line of text; {_REMEDY}")
    numbers = (("memory", _MEMORY), ("model", ("context_length",)))
    for section, key in ((section, key) for section, keys in numbers for key in keys):
        value = manifest[section].get(key, 0)
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise BundleError(f"{where}: {section}.{key} is not a number of bytes or positions; {_REMEDY}")
    files = tuple(_file(where, name, entry) for name, entry in manifest["files"].items())
    return Bundle(path, manifest, digest, files)


inspect = read


def problems(bundle: Bundle, progress: Progress | None = None) -> list[str]:
    """What is wrong with each file, one line per file; empty when all is well. Hashes everything."""
    found: list[str] = []
    done = 0
    for file in bundle.files:
        path = bundle.path / file.path
        try:
            size = path.stat().st_size
            if size != file.n_bytes:
                found.append(f"{path} has {size} bytes, the manifest says {file.n_bytes}")
            elif sha256_of(path) != file.sha256:
                found.append(f"{path} does not match its SHA-256")
        except OSError as error:
            found.append(f"{path} cannot be read: {error.strerror}")
        done += file.n_bytes
        if progress is not None:
            progress(done, bundle.n_bytes)
    return found


def verify(path: str | Path, progress: Progress | None = None) -> Bundle:
    """Hashes every file and writes the verified stamp. BundleError lists every file that is wrong."""
    bundle = read(path)
    found = problems(bundle, progress)
    if found:
        raise BundleError(f"{'; '.join(found)}; {_REMEDY}")
    with contextlib.suppress(PermissionError):  # a bundle on read-only media verifies too, it just has no stamp
        write_stamp(bundle)
    return bundle


def intact(path: Path) -> Bundle | None:
    """The bundle at a place of the cache, if it is there and whole: its stamp or its checksums vouch for it."""
    try:
        found = read(path)
    except BundleError:
        return None
    return found if is_stamped(found) or not problems(found) else None


@contextlib.contextmanager
def building(output: Path) -> Iterator[Path]:
    """A temporary directory beside `output` that takes its name when the block ends without an error.

    An existing bundle, or an empty directory, is replaced; anything else is refused. Nothing half-written stays.
    """
    output = output.absolute()
    is_bundle = all((output / name).is_file() for name in (MANIFEST, DIGEST))
    if output.exists() and not is_bundle and (not output.is_dir() or any(output.iterdir())):
        raise BundleError(f"{output} exists and is not a bundle; choose another directory or remove it")
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _sweep(output)
        _remove(partial)
        partial.mkdir()
    except OSError as error:
        raise BundleError(f"{output} cannot be written: {error.strerror}; choose another directory") from error
    try:
        yield partial
        for directory in (*(d for d in partial.rglob("*") if d.is_dir()), partial):
            _sync(directory)
        old = output.with_name(f".{output.name}.{os.getpid()}.old")
        if output.exists():
            output.rename(old)
        partial.rename(output)
        _sync(output.parent)
        _remove(old)
    finally:
        _remove(partial)


def _sweep(output: Path) -> None:
    """Removes what a killed process left beside `output`."""
    for entry in output.parent.glob(f".{glob.escape(output.name)}.*"):
        pid, _, kind = entry.name[len(output.name) + 2 :].partition(".")
        if pid.isdigit() and kind in ("partial", "old") and not Path(f"/proc/{pid}").exists():
            _remove(entry)


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def link(base: Bundle, partial: Path) -> None:
    """Names for the base's files in `partial`: they take no disk twice. Linking makes its stamp stale."""
    is_vouched = is_stamped(base)
    for file in base.files:
        (partial / file.path).parent.mkdir(parents=True, exist_ok=True)
        os.link(base.path / file.path, partial / file.path)
    if is_vouched:
        write_stamp(base)


def copy(bundle: Bundle, output: Path) -> Bundle:
    """A second copy of a bundle, complete or not there at all."""
    with building(output) as partial:
        for file in bundle.files:
            target = partial / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(bundle.path / file.path, target)
            _sync(target)
        for name in (MANIFEST, DIGEST, SIGNATURE):
            if name != SIGNATURE or (bundle.path / name).is_file():
                shutil.copy2(bundle.path / name, partial / name)
                _sync(partial / name)
    copied = read(output)
    write_stamp(copied)
    return copied
