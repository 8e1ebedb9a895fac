"""The options of `edgellm deploy` about signatures and encryption, and what they do to a bundle on its way."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edgellm import encryption, signing
from edgellm.boards import Board
from edgellm.bundle import MANIFEST, Bundle
from edgellm.compile_cli import StageDisplay
from edgellm.errors import UsageError
from edgellm.keygen_cli import add_signing, ask_passphrase
from edgellm.trust import Demand


def add_trust_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "trust",
        "a board pins a key at the first deployment that requires a signature, and from then on takes nothing else; "
        "`edgellm trust` lists and unpins",
    )
    add_signing(group)
    group.add_argument("--require-signature", action="store_true", help="refuse an unsigned bundle; pin its key")
    group.add_argument(
        "--signed-by", action="append", metavar="PUB", help="the same, by this public key (file or name)"
    )
    group.add_argument(
        "--encrypt", action="store_true", help="encrypt the weights on the board's disk, with a key of the board's own"
    )
    group.add_argument(
        "--key", type=Path, metavar="FILE", help="with --encrypt: this key of 32 bytes, not the one kept here"
    )


@dataclass(frozen=True)
class Trust:
    """What the options say. secret: the board's key to its weights, None without --encrypt."""

    key: signing.SigningKey | None
    demand: Demand
    secret: bytes | None

    @classmethod
    def of(cls, args: argparse.Namespace, board: Board, host: str | None) -> Trust:
        if args.key is not None and not args.encrypt:
            raise UsageError("--key FILE is the key to encrypted weights; add --encrypt")
        key = signing.load_private(args.sign, ask_passphrase) if args.sign is not None else None
        by = tuple(signing.load_public(text) for text in args.signed_by or ())
        secret = None
        if args.encrypt:
            name = f"{board.label}-{host}" if host else board.label
            path = args.key or encryption.key_path(name)
            secret = encryption.load_key(path, make=args.key is None)
        return cls(key, Demand(args.require_signature or bool(by), by), secret)

    def applied(self, bundle: Bundle, stack: ExitStack, quiet: bool) -> Bundle:
        """The bundle, signed and encrypted as asked, until `stack` ends. The original stays as it is."""
        if self.key is not None:
            line = self.key.line((bundle.path / MANIFEST).read_bytes())
            bundle = stack.enter_context(encryption.view(bundle, line))
        if self.secret is not None:
            with StageDisplay(quiet=quiet) as display:

                def show(done: int, total: int) -> None:
                    display.update("encrypting", done, total)

                bundle = stack.enter_context(encryption.encrypted(bundle, self.secret, show))
        return bundle
