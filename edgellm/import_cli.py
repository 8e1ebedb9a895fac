"""Take a bundle out of a file that `edgellm export` wrote.

Everything in it is checked against its manifest, and the manifest against its signature, before the directory gets its
name. `edgellm deploy FILE.edgellm` does the same on its way to a board.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edgellm import archive
from edgellm.bundle import Bundle
from edgellm.compile_cli import StageDisplay
from edgellm.errors import BundleError, UsageError
from edgellm.terminal import size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example:\n  edgellm import model.edgellm --signed-by alice.pub\n  edgellm deploy model --board kitchen"
    )
    parser.add_argument("file", metavar="FILE", help="what `edgellm export` wrote; -: standard input")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: FILE without its ending, here")
    parser.add_argument(
        "--signed-by", action="append", metavar="PUB", help="refuse it unless this public key signed it"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    from edgellm import signing

    if args.file == "-" and args.output is None:
        raise UsageError("from standard input a bundle has no name; give it one with -o DIR")
    output = args.output or Path(Path(args.file).name.removesuffix(archive.SUFFIX))
    if args.output is None and output == Path(args.file):
        raise UsageError(f"{args.file} does not end in {archive.SUFFIX}; say with -o DIR where it is to go")
    bundle = unpacked(args.file, output, args.signed_by, quiet=args.json)
    signed_by = [signer.hex for signer in signing.signers(bundle)]
    if args.json:
        print(json.dumps({"path": str(bundle.path), "sha256": bundle.sha256, "signed_by": signed_by}))
        return 0
    by = f"signed by key {', '.join(signer[:16] for signer in signed_by)}" if signed_by else "not signed by anybody"
    print(f"{bundle.path}: {bundle.name} {bundle.scheme} for {bundle.tier}, {size(bundle.n_bytes)}, {by}")
    print(f"put it on a board: edgellm deploy {bundle.path} --board BOARD")
    return 0


def unpacked(file: str, output: Path, signed_by: list[str] | None, quiet: bool) -> Bundle:
    """Unpacks `file` into `output`, with a bar. signed_by: public keys of which one must have signed it."""
    from edgellm import signing

    trusted = None if not signed_by else [signing.load_public(text) for text in signed_by]
    with StageDisplay(quiet=quiet) as display:

        def show(done: int, total: int) -> None:
            display.update("unpacking", done, total)

        try:
            if file == "-":
                return archive.unpack(sys.stdin.buffer, "standard input", output, archive.trusting(trusted), show)
            with open(file, "rb") as source:
                return archive.unpack(source, file, output, archive.trusting(trusted), show)
        except OSError as error:
            raise BundleError(f"{file} cannot be unpacked to {output}: {error.strerror}") from error
