"""Weights encrypted at rest, with a key of the board's own. runtime_c/FORMAT.md specifies the bytes.

The manifest stays what was compiled and signed: it names the plain files, and the runtime compares with them what it
decrypts. manifest.enc says which encrypted file stands for which plain one.

The same file and key give the same encrypted file, so that a board's store keeps what does not change, and so that a
transfer can be resumed. The price: who sees a board's disk twice sees which files changed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from edgellm import cache
from edgellm.bundle import DIGEST, MANIFEST, SIGNATURE, Bundle, BundleFile, Progress, sha256_of
from edgellm.errors import TrustError
from edgellm.files import write_atomically

KEY_BYTES, HEADER_BYTES, CHUNK_BYTES, TAG_BYTES = 32, 40, 65536, 16
MAP = "manifest.enc"
_MAGIC = b"ELLMENC1"
_ID_LABEL = b"edgellm weights key 1\n"
_NONCE_LABEL = b"edgellm weights nonce 1\n"


def key_id(key: bytes) -> str:
    """16 digits that tell keys apart and tell nothing about them."""
    return hashlib.sha256(_ID_LABEL + key).hexdigest()[:16]


def encrypted_bytes(n_bytes: int) -> int:
    """Size of the encrypted form of a file."""
    return HEADER_BYTES + n_bytes + -(-n_bytes // CHUNK_BYTES) * TAG_BYTES


def encrypt(plain: Path, sha256: str, key: bytes, output: Path) -> str:
    """Writes the encrypted form of `plain`, which has this SHA-256, whole or not at all. Returns its own SHA-256.

    The nonce is made from the content: another content gets another one, and the same gives the same bytes.
    """
    nonce = hmac.digest(key, _NONCE_LABEL + bytes.fromhex(sha256), "sha256")[:8]
    header = _MAGIC + struct.pack("<Q", plain.stat().st_size) + nonce + key_id(key).encode()
    aead, seen, made = ChaCha20Poly1305(key), hashlib.sha256(), hashlib.sha256(header)
    partial = output.with_name(f"{output.name}.{os.getpid()}")
    try:
        with plain.open("rb") as source, partial.open("wb") as sink:
            sink.write(header)
            index = 0
            while chunk := source.read(CHUNK_BYTES):
                seen.update(chunk)
                sealed = aead.encrypt(nonce + struct.pack("<I", index), chunk, header)
                made.update(sealed)
                sink.write(sealed)
                index += 1
        if seen.hexdigest() != sha256:  # its nonce would be another content's
            raise TrustError(f"{plain} does not match its SHA-256, so it is not encrypted; compile the bundle again")
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return made.hexdigest()


# ---- keys ----


def key_path(board: str) -> Path:
    """Where this machine keeps the key of a board, by the name that the board goes by here."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "edgellm" / "weights" / f"{re.sub(r'[^A-Za-z0-9._@-]+', '-', board)}.key"


def load_key(path: Path, *, make: bool = False) -> bytes:
    """Reads a key of 32 bytes; makes it first if it is not there and `make` says so."""
    try:
        if make and not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, secrets.token_bytes(KEY_BYTES), mode=0o600)
        key, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise TrustError(f"key {path} cannot be read: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise TrustError(f"key {path} is open to others; run: chmod 600 {path}")
    if len(key) != KEY_BYTES:
        raise TrustError(f"key {path} has {len(key)} bytes, not {KEY_BYTES}; make one: head -c 32 /dev/urandom")
    return key


# ---- bundles ----


@contextmanager
def view(bundle: Bundle, signature: str | None = None) -> Iterator[Bundle]:
    """The bundle in a temporary directory of links, so that something can be added that is not the bundle's own.

    signature: of manifest.sig; None: the bundle's, if it has one."""
    with TemporaryDirectory(prefix="edgellm-") as name:
        folder = Path(name)
        own = [name for name in (MANIFEST, DIGEST, SIGNATURE) if (bundle.path / name).is_file()]
        for path in (*own, *(file.path for file in bundle.files)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to((bundle.path / path).absolute())
        if signature is not None:
            (folder / SIGNATURE).unlink(missing_ok=True)
            (folder / SIGNATURE).write_text(signature)
        yield Bundle(folder, bundle.manifest, bundle.sha256, bundle.files)


@contextmanager
def encrypted(bundle: Bundle, key: bytes, progress: Progress | None = None) -> Iterator[Bundle]:
    """The bundle as it will lie on the board: `files` has the sizes and hashes of encrypted shards.

    Encrypted files are kept in the cache, so that the next deployment makes only those that changed.
    """
    kept = cache.root() / "encrypted" / key_id(key)
    kept.mkdir(parents=True, exist_ok=True)
    total, done = sum(file.n_bytes for file in bundle.files if is_encrypted(file)), 0
    with view(bundle) as seen:
        files, lines = [], []
        for file in bundle.files:
            if is_encrypted(file):
                made = _kept(bundle.path / file.path, file, key, kept)
                lines.append(f"{file.sha256} {made.sha256}\n")
                (seen.path / file.path).unlink()
                (seen.path / file.path).symlink_to(kept / file.sha256)
                done += file.n_bytes
                if progress is not None:
                    progress(done, total)
            files.append(made if is_encrypted(file) else file)
        (seen.path / MAP).write_text("".join(sorted(set(lines))))
        yield Bundle(seen.path, seen.manifest, seen.sha256, tuple(files))


def is_encrypted(file: BundleFile) -> bool:
    """Weights are; what tells how they are computed with is not."""
    return file.path.startswith("weights/") and file.path.endswith(".safetensors") and file.n_bytes > 0


def _kept(plain: Path, file: BundleFile, key: bytes, kept: Path) -> BundleFile:
    """The encrypted form of a file in the cache; made if it is not there."""
    path, n_bytes = kept / file.sha256, encrypted_bytes(file.n_bytes)
    if path.is_file() and path.stat().st_size == n_bytes:
        return BundleFile(file.path, n_bytes, sha256_of(path))
    return BundleFile(file.path, n_bytes, encrypt(plain, file.sha256, key, path))
