"""Make a key that bundles are signed with.

The private half stays on this machine, readable by you only. The public half, NAME.pub, is what others need: a board
takes it with the first `edgellm deploy --require-signature`, or with `edgellm trust --pin`.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import shlex
import sys
from pathlib import Path

from edgellm.errors import UsageError
from edgellm.terminal import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example:\n"
        "  edgellm keygen home\n"
        "  edgellm deploy ./MyModel --board kitchen --sign home --require-signature\n\n"
        "A key made without --passphrase is as safe as this machine's disk. EDGELLM_PASSPHRASE answers the question\n"
        "for a passphrase where nobody can be asked."
    )
    parser.add_argument("name", nargs="?", default="default", help="what it is called in --sign (default: default)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where (default: NAME.pem in your data folder)"
    )
    parser.add_argument(
        "--passphrase", action="store_true", help="ask for a passphrase that the key needs from then on"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    from edgellm.signing import generate, keys_folder

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", args.name):
        raise UsageError(f"'{one_line(args.name)}' cannot be a key's name; use letters, digits, dash and underscore")
    path = args.output or keys_folder() / f"{args.name}.pem"
    public = generate(path, args.name, _new_passphrase() if args.passphrase else None)
    if args.json:
        print(json.dumps({"private": str(path), "public": str(path.with_suffix(".pub")), "key": public.hex}))
        return 0
    print(f"private  {path} (keep it; it cannot be had back)")
    print(f"public   {path.with_suffix('.pub')}")
    print(f"key      {public.hex}")
    said = shlex.quote(str(args.output.absolute())) if args.output else args.name
    print(f"sign with it: edgellm compile --sign {said}")
    return 0


def _new_passphrase() -> str:
    given = os.environ.get("EDGELLM_PASSPHRASE")
    if given:
        return given
    if not sys.stdin.isatty():
        raise UsageError("--passphrase needs a terminal to ask at, or EDGELLM_PASSPHRASE")
    first = getpass.getpass("passphrase: ")
    if not first or getpass.getpass("once more: ") != first:
        raise UsageError("that was not twice the same passphrase; nothing was made")
    return first


def add_signing(parser: argparse._ActionsContainer) -> None:
    """--sign, for every command that makes a bundle."""
    parser.add_argument("--sign", metavar="KEY", help="sign it with this key of `edgellm keygen`: its name or file")


def ask_passphrase(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise UsageError(f"{prompt.removesuffix(': ')} is needed, and there is no terminal; set EDGELLM_PASSPHRASE")
    return getpass.getpass(prompt)
