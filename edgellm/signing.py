"""Who made a bundle: Ed25519 keys, and signatures over manifest.json, which names every byte of a bundle.

A signature lies beside the manifest, in manifest.sig, so that signing changes nothing that was compiled. Private keys
are PKCS #8 files that only their owner can read, with a passphrase or without; a public key is a line of text.
runtime_c/FORMAT.md specifies the files that a board reads.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from edgellm.bundle import MANIFEST, SIGNATURE, Bundle
from edgellm.errors import TrustError
from edgellm.files import write_atomically

MOST_LINES = 16
"""Keys and signatures that a board reads."""

Ask = Callable[[str], str]
"""Asks the user for a secret, with a prompt."""

_KEY_LINE = re.compile(r"ed25519 ([0-9a-f]{64})(?: ([ -~]{0,64}))?")
_SIGNATURE_LINE = re.compile(r"ed25519 ([0-9a-f]{64}) ([0-9a-f]{128})\n")
_SMALL_ORDER = re.compile(
    # y of the points of order 1, 2, 4 and 8, with their other encodings; the sign of x is the last byte's highest bit
    r"01(00){30}[08]0|ec(ff){30}[7f]f|(00){31}[08]0|ed(ff){30}[7f]f|ee(ff){30}[7f]f"
    r"|26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc[08]5"
    r"|c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03[7f]a"
)


@dataclass(frozen=True)
class PublicKey:
    """hex: its 32 bytes, 64 lower-case digits; name: what people call it, for them only."""

    hex: str
    name: str = ""

    @property
    def short(self) -> str:
        """How messages call it, here and on a board."""
        return self.hex[:16]

    @property
    def line(self) -> str:
        """The line of a .pub file, and of a board's file of pinned keys."""
        return f"ed25519 {self.hex} {self.name}".rstrip() + "\n"


@dataclass(frozen=True)
class SigningKey:
    """A private key and its public half."""

    private: Ed25519PrivateKey
    public: PublicKey

    def line(self, manifest: bytes) -> str:
        """The line of manifest.sig that says that this key vouches for the manifest."""
        return f"ed25519 {self.public.hex} {self.private.sign(manifest).hex()}\n"


def keys_folder() -> Path:
    """Where keys without a path lie: ~/.local/share/edgellm/keys, or below XDG_DATA_HOME."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "edgellm" / "keys"


def key_path(text: str) -> Path:
    """The file that a key's name or path means."""
    return Path(text).expanduser() if os.sep in text or Path(text).suffix else keys_folder() / f"{text}.pem"


def generate(path: Path, name: str, passphrase: str | None = None) -> PublicKey:
    """Makes a key pair: `path`, readable by its owner only, and the public half beside it in a .pub file.

    Raises TrustError if one of them is there already: a lost private key cannot be had back.
    """
    public_path = path.with_suffix(".pub")
    if path == public_path:
        raise TrustError(f"{path}: .pub is the public half's ending; choose another one for the private key")
    for there in (path, public_path):
        if there.exists():
            raise TrustError(f"{there} is there already, and is not replaced; choose another name")
    private = Ed25519PrivateKey.generate()
    kept = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, kept), mode=0o600)
        public = _public_of(private, name)
        write_atomically(public_path, public.line.encode())
    except OSError as error:
        raise TrustError(f"{path} cannot be written: {error.strerror}; choose another place with -o") from error
    return public


def load_private(text: str, ask: Ask | None = None) -> SigningKey:
    """Reads a private key by its name or path. ask: for the passphrase, if it has one."""
    path = key_path(text)
    try:
        data, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        remedy = "make one with `edgellm keygen`" if isinstance(error, FileNotFoundError) else "look at its permissions"
        raise TrustError(f"key {path} cannot be read: {error.strerror}; {remedy}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise TrustError(f"key {path} is open to others; run: chmod 600 {path}")
    passphrase = os.environ.get("EDGELLM_PASSPHRASE") or None
    if b"ENCRYPTED" in data and passphrase is None:
        if ask is None:
            raise TrustError(f"key {path} has a passphrase; set EDGELLM_PASSPHRASE")
        passphrase = ask(f"passphrase of {path}: ")
    try:
        private = load_pem_private_key(data, passphrase.encode() if passphrase and b"ENCRYPTED" in data else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError(
            f"key {path} does not open: not a PEM file of `edgellm keygen`, or a wrong passphrase"
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise TrustError(f"key {path} is no Ed25519 key; make one with `edgellm keygen`")
    return SigningKey(private, _public_of(private, path.stem))


def _public_of(private: Ed25519PrivateKey, name: str) -> PublicKey:
    return PublicKey(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex(), name)


def parse_public(line: str, where: str) -> PublicKey:
    """A public key from its line. `where` is what messages call the place."""
    match = _KEY_LINE.fullmatch(line.rstrip("\n"))
    if match is None:
        raise TrustError(f"{where}: not a line 'ed25519 <64 hexadecimal digits> name', as `edgellm keygen` writes it")
    if _SMALL_ORDER.fullmatch(match[1]):
        raise TrustError(f"{where}: this key accepts every signature, so it is none")
    return PublicKey(match[1], match[2] or "")


def load_public(text: str) -> PublicKey:
    """Reads a public key: a .pub file, or the name of a key in keys_folder()."""
    path = key_path(text).with_suffix(".pub")
    try:
        return parse_public(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise TrustError(
            f"public key {path} cannot be read; `edgellm keygen` writes it beside the private one"
        ) from error


# ---- signatures ----


def sign(bundle: Bundle, key: SigningKey) -> None:
    """Adds the key's signature to a bundle, in place of an older one by this key. Other keys' signatures stay."""
    manifest = (bundle.path / MANIFEST).read_bytes()
    kept = [line for signer, line in _lines(bundle) if signer != key.public.hex and _is_good(line, manifest)]
    if len(kept) == MOST_LINES:
        raise TrustError(
            f"{bundle.path / SIGNATURE} has {MOST_LINES} signatures already; remove the file to begin anew"
        )
    write_atomically(bundle.path / SIGNATURE, "".join([key.line(manifest), *kept]).encode())


def signers(bundle: Bundle) -> list[PublicKey]:
    """The keys that a bundle is signed by; empty without a signature. TrustError if one of them is wrong."""
    manifest = (bundle.path / MANIFEST).read_bytes()
    found = []
    for signer, line in _lines(bundle):
        if not _is_good(line, manifest):
            raise TrustError(
                f"{bundle.path / SIGNATURE}: the signature by key {signer[:16]} is not one of this manifest; sign the "
                "bundle again, or get it again from where it was signed"
            )
        found.append(PublicKey(signer))
    return found


def check(bundle: Bundle, trusted: Iterable[PublicKey]) -> PublicKey:
    """The trusted key that a bundle is signed by. Raises TrustError, with the remedy, if there is none."""
    trusted = list(trusted)
    found = signers(bundle)
    wanted = ", ".join(key.short for key in trusted)
    if not found:
        raise TrustError(
            f"{bundle.path} is not signed, and key {wanted} is wanted; sign it: edgellm compile --sign KEY"
        )
    for key in trusted:
        if any(key.hex == signer.hex for signer in found):
            return key
    by = ", ".join(signer.short for signer in found)
    raise TrustError(f"{bundle.path} is signed by key {by}, not by {wanted}; sign it with that key, or trust this one")


def _lines(bundle: Bundle) -> list[tuple[str, str]]:
    """(public key, line) of each signature of a bundle."""
    path = bundle.path / SIGNATURE
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise TrustError(f"{path} cannot be read ({error}); sign the bundle again") from error
    lines = text.splitlines(keepends=True)
    matches = [_SIGNATURE_LINE.fullmatch(line) for line in lines]
    if not lines or len(lines) > MOST_LINES or None in matches:
        raise TrustError(f"{path}: not lines 'ed25519 <public key> <signature>'; sign the bundle again")
    return [(match[1], match[0]) for match in matches if match is not None]


def _is_good(line: str, manifest: bytes) -> bool:
    _, signer, signature = line.split()
    if _SMALL_ORDER.fullmatch(signer):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer)).verify(bytes.fromhex(signature), manifest)
    except (InvalidSignature, ValueError):
        return False
    return True
