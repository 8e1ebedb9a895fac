"""What a board trusts: pinned public keys, and its key to encrypted weights, beside the edgellm-rt that is installed.

A board without pinned keys takes any bundle. One with them takes only bundles that one of them has signed: this side
says so before the first byte, the board's own program decides. The keys lie outside of everything that is deployed.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from edgellm import signing
from edgellm.board_session import root_of
from edgellm.bundle import Bundle
from edgellm.encryption import key_id
from edgellm.errors import TrustError
from edgellm.remote import FLUSH, Remote, shell_argv
from edgellm.signing import MOST_LINES, PublicKey
from edgellm.terminal import one_line

PINNED, SECRET = "trusted_keys", "weights.key"

_WRITE = (
    FLUSH
    + r"""
mkdir -p "$1"; cd "$1"; umask 077
cat >"$2.new"; chmod "$3" "$2.new"; flush "$2.new"; mv -f "$2.new" "$2"; flush .
"""
)


@dataclass(frozen=True)
class Demand:
    """What a deployment asks of a bundle. signed: it must be; by: one of these keys; none: whichever signed it."""

    signed: bool = False
    by: tuple[PublicKey, ...] = ()


def pinned(remote: Remote, home: str) -> list[PublicKey]:
    """The keys that a board has pinned; empty where it takes any bundle."""
    path = posixpath.join(root_of(home), PINNED)
    text = remote.script('[ ! -e "$1" ] || { echo pinned; cat "$1"; }', path).text
    if not text:
        return []
    where = f"{remote.name}: {path}"
    keys = [signing.parse_public(one_line(line, 200), where) for line in text.rstrip("\n").split("\n")[1:]]
    if not 0 < len(keys) <= MOST_LINES:
        raise TrustError(f"{where} has {len(keys)} keys, so nothing is trusted; edgellm trust --unpin all --pin KEY")
    return keys


def pin(remote: Remote, home: str, keys: Sequence[PublicKey]) -> None:
    """Replaces the board's pinned keys; without any it takes every bundle again."""
    if len(keys) > MOST_LINES:
        raise TrustError(f"{remote.name}: at most {MOST_LINES} keys can be pinned; unpin one first")
    if keys:
        _write(remote, home, PINNED, "".join(key.line for key in keys).encode(), "644")
    else:
        remote.script(FLUSH + 'cd "$1" 2>/dev/null || exit 0; rm -f "$2"; flush .', root_of(home), PINNED)


def admit(bundle: Bundle, remote: Remote, home: str, demand: Demand) -> PublicKey | None:
    """Raises TrustError unless the board, and `demand`, will have this bundle. Returns a key that is to be pinned."""
    keys = pinned(remote, home)
    signers = signing.signers(bundle)
    if demand.by:
        chosen: PublicKey | None = signing.check(bundle, demand.by)
    elif demand.signed and not signers:
        raise TrustError(f"{bundle.path} is not signed; sign it with --sign KEY (`edgellm keygen` makes one)")
    else:
        chosen = signers[0] if demand.signed and not keys else None
    if not keys:
        return chosen
    try:
        signing.check(bundle, keys)
    except TrustError as error:
        raise TrustError(f"{remote.name} only takes bundles by its pinned keys (`edgellm trust`): {error}") from error
    return None


def put_secret(remote: Remote, home: str, key: bytes) -> None:
    """Gives the board its key to encrypted weights. TrustError if it has another one, which other models may need."""
    path = posixpath.join(root_of(home), SECRET)
    script = """[ ! -e "$1" ] || { command -v sha256sum >/dev/null || { echo "sha256sum is missing there" >&2; exit 1; }
{ printf "edgellm weights key 1\\n"; cat "$1"; } | sha256sum | cut -c1-16; }"""
    there = remote.script(script, path).text.strip()
    if there == key_id(key):
        return
    if there:
        raise TrustError(
            f"{remote.name} has another key for its weights ({one_line(there, 16)}, not {key_id(key)}); name it with "
            f"--key FILE, or, if it is lost, undeploy what needs it and remove {path} there"
        )
    _write(remote, home, SECRET, key, "600")


def _write(remote: Remote, home: str, name: str, data: bytes, mode: str) -> None:
    remote.check(shell_argv(_WRITE, root_of(home), name, mode), stdin=data)
