"""A bundle as one file: a tar archive that holds a bundle's files in a fixed order, and nothing else.

    manifest.json, manifest.sha256, manifest.sig (if it is signed), then what the manifest lists, sorted by path

The same bundle gives the same bytes, wherever and whenever it is packed. Whoever unpacks one knows after the first
entries what must follow: each entry has to be exactly the next file of the manifest, with its size and SHA-256, so
that no path leads elsewhere, nothing unpacks to more than was announced, and nothing is written before the signature
was checked. Neither side holds more than a piece of it in memory; pipes will do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgellm import bundle as bundles
from edgellm.bundle import DIGEST, MANIFEST, SIGNATURE, Bundle, Progress
from edgellm.errors import BundleError, UnsuitableError
from edgellm.files import write_atomically
from edgellm.runtime_program import PROGRAM
from edgellm.terminal import one_line, size

if TYPE_CHECKING:
    from edgellm.signing import PublicKey

SUFFIX = ".edgellm"
_BLOCK = tarfile.BLOCKSIZE
_PIECE_BYTES = 1 << 20
_LIMITS = {MANIFEST: 16 << 20, DIGEST: 128, SIGNATURE: 8192}
_NAME_CAP = 100  # bytes of a name in a tar header; longer ones need extensions that we do without

Check = Callable[[Bundle], None]
"""Raises TrustError if a bundle, of which only manifest and signature are there yet, is not wanted."""


def file_name(bundle: Bundle) -> str:
    """What a bundle's file is called unless somebody says otherwise."""
    return f"{bundle.path.absolute().name}{SUFFIX}"


def pack(bundle: Bundle, sink: BinaryIO, progress: Progress | None = None) -> None:
    """Writes a bundle as one file. BundleError if one of its files is not what the manifest says."""
    entries = _entries(bundle)
    total, done = sum(n_bytes for _, n_bytes, _ in entries), 0
    for name, n_bytes, sha256 in entries:
        if len(name.encode()) > _NAME_CAP:
            raise BundleError(f"{bundle.path / name}: the path has more than {_NAME_CAP} bytes, too many for one file")
        header = tarfile.TarInfo(name)
        header.size, header.mode, header.uname, header.gname = n_bytes, _mode(name), "", ""
        sink.write(header.tobuf(tarfile.GNU_FORMAT, "utf-8"))
        digest = hashlib.sha256()
        with (bundle.path / name).open("rb") as source:
            while piece := source.read(_PIECE_BYTES):
                digest.update(piece)
                sink.write(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise BundleError(f"{bundle.path / name} does not match its SHA-256; compile the bundle again")
        sink.write(bytes(-n_bytes % _BLOCK))
    sink.write(bytes(2 * _BLOCK))


def _entries(bundle: Bundle) -> list[tuple[str, int, str | None]]:
    """(path, bytes, SHA-256 if the manifest has it) of everything, in order."""
    own = [name for name in (MANIFEST, DIGEST, SIGNATURE) if (bundle.path / name).is_file()]
    listed = [(file.path, file.n_bytes, file.sha256) for file in sorted(bundle.files, key=lambda file: file.path)]
    for path, n_bytes, _ in listed:
        try:
            there = (bundle.path / path).stat().st_size
        except OSError as error:
            raise BundleError(
                f"{bundle.path / path} cannot be read: {error.strerror}; compile the bundle again"
            ) from error
        if there != n_bytes:
            raise BundleError(f"{bundle.path / path} has {there} bytes, the manifest says {n_bytes}; compile it again")
    return [*((name, (bundle.path / name).stat().st_size, None) for name in own), *listed]


def _mode(name: str) -> int:
    return 0o755 if name == PROGRAM else 0o644


# ---- unpacking ----


def unpack(
    source: BinaryIO, where: str, output: Path, check: Check | None = None, progress: Progress | None = None
) -> Bundle:
    """Reads a bundle from one file into the directory `output`, complete and verified, or not at all.

    where: what messages call the source; check: called before anything but the manifest is read; without one, a
    signature need not be there, but if it is, it must be right. Raises BundleError, TrustError, or UnsuitableError if
    the disk cannot hold it.
    """
    reader = _Reader(source, where)
    with bundles.building(output) as partial:
        held = _read_own(reader, partial)
        bundle = bundles.read(partial)
        _check_names(bundle)
        (check or trusting(None))(bundle)
        _check_room(bundle, output)
        done = 0
        for file in sorted(bundle.files, key=lambda file: file.path):
            header = held or reader.header()
            held = None
            if header is None or header.name != file.path or header.size != file.n_bytes:
                found = "its end" if header is None else f"{one_line(header.name, 80)!r} of {header.size} bytes"
                raise BundleError(
                    f"{where}: {file.path} of {file.n_bytes} bytes must follow, not {found}; get it again"
                )
            target = partial / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with target.open("xb") as sink:
                for piece in reader.content(file.n_bytes):
                    digest.update(piece)
                    sink.write(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, bundle.n_bytes)
                sink.flush()
                os.fsync(sink.fileno())
            if digest.hexdigest() != file.sha256:
                raise BundleError(f"{where}: {file.path} does not match its SHA-256; get the file again")
            target.chmod(_mode(file.path))
        if held is not None or reader.header() is not None:
            raise BundleError(f"{where}: more follows than the manifest lists; get it again from somebody you trust")
        bundles.write_stamp(bundle)
    return bundles.read(output)


def _read_own(reader: _Reader, partial: Path) -> tarfile.TarInfo | None:
    """Reads manifest, digest and signature. Returns the header that was read too far, if there was no signature."""
    for name in (MANIFEST, DIGEST, SIGNATURE):
        header = reader.header()
        if header is not None and name == SIGNATURE and header.name != SIGNATURE:
            return header
        if header is None and name == SIGNATURE:
            return None
        if header is None or header.name != name or header.size > _LIMITS[name]:
            raise BundleError(
                f"{reader.where} is not a bundle that `edgellm export` wrote: {name} is not where it must be"
            )
        write_atomically(partial / name, b"".join(reader.content(header.size)))
    return None


def _check_names(bundle: Bundle) -> None:
    for file in bundle.files:
        if any(part.startswith(".") for part in file.path.split("/")) or file.path in bundles.NOT_CONTENT:
            raise BundleError(f"{file.path!r} cannot be a file of a bundle; get it again from somebody you trust")


def _check_room(bundle: Bundle, output: Path) -> None:
    free = shutil.disk_usage(output.absolute().parent).free
    if bundle.n_bytes > free:
        raise UnsuitableError(
            f"{output.absolute().parent} has {size(free)} free, the bundle takes {size(bundle.n_bytes)}; free some "
            "space or choose another disk with -o"
        )


class _Reader:
    """Entries of a tar archive, one after the other: plain files only, no extensions."""

    def __init__(self, source: BinaryIO, where: str) -> None:
        self._source, self.where = source, where

    def header(self) -> tarfile.TarInfo | None:
        """The next entry's; None at the archive's end, which has to be the end of the file as well."""
        block = self._exactly(_BLOCK)
        if block == bytes(_BLOCK):
            if self._exactly(_BLOCK) != bytes(_BLOCK) or self._source.read(1):
                raise BundleError(f"{self.where}: something follows its end; get it again")
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise BundleError(f"{self.where} is not a bundle that `edgellm export` wrote ({error})") from error
        if header.type != tarfile.REGTYPE or header.size < 0:
            raise BundleError(
                f"{self.where}: {one_line(header.name, 80)!r} is no plain file; get it from somebody you trust"
            )
        return header

    def content(self, n_bytes: int) -> Iterator[bytes]:
        """What follows a header, and its padding."""
        left = n_bytes
        while left:
            piece = self._source.read(min(left, _PIECE_BYTES))
            if not piece:
                raise self._short()
            left -= len(piece)
            yield piece
        if any(self._exactly(-n_bytes % _BLOCK)):
            raise BundleError(f"{self.where}: something lies between its files; get it again")

    def _exactly(self, n_bytes: int) -> bytes:
        data = b""
        while len(data) < n_bytes:
            piece = self._source.read(n_bytes - len(data))
            if not piece:
                raise self._short()
            data += piece
        return data

    def _short(self) -> BundleError:
        return BundleError(f"{self.where} ends too early; get it again")


def trusting(trusted: Sequence[PublicKey] | None) -> Check:
    """A check for `unpack`: signed by one of these keys; None: by whom it will, or nobody, but if so then rightly."""
    from edgellm import signing

    def check(bundle: Bundle) -> None:
        if trusted is None:
            signing.signers(bundle)
        else:
            signing.check(bundle, trusted)

    return check
