"""Put a bundle into one file.

The file holds everything that a board needs: whoever gets it deploys it without compiling anything. The same bundle
gives the same file, to the byte. Sign it, so that others can tell who made it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from edgellm import archive
from edgellm import bundle as bundles
from edgellm.compile_cli import StageDisplay
from edgellm.errors import BundleError
from edgellm.keygen_cli import add_signing, ask_passphrase
from edgellm.terminal import size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgellm export bundle/ --sign home\n"
        "  edgellm export bundle/ -o - | ssh friend@example.org 'cat >model.edgellm'"
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle directory, from `edgellm compile -o`")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: BUNDLE.edgellm here; -: standard output")
    add_signing(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    from edgellm import signing

    key = signing.load_private(args.sign, ask_passphrase) if args.sign is not None else None
    bundle = bundles.read(args.bundle)
    if key is not None:
        signing.sign(bundle, key)
    signed_by = [signer.hex for signer in signing.signers(bundle)]
    with StageDisplay(quiet=args.json) as display:

        def show(done: int, total: int) -> None:
            display.update("packing", done, total)

        if args.output == "-":
            archive.pack(bundle, sys.stdout.buffer, show)
            return 0
        output = Path(args.output or archive.file_name(bundle))
        _write(bundle, output, show)
    if args.json:
        print(json.dumps({"file": str(output), "bytes": output.stat().st_size, "signed_by": signed_by}))
    else:
        by = f"signed by key {', '.join(signer[:16] for signer in signed_by)}" if signed_by else "not signed"
        print(f"{output}: {bundle.name} {bundle.scheme} for {bundle.tier}, {size(output.stat().st_size)}, {by}")
    return 0


def _write(bundle: bundles.Bundle, output: Path, progress: bundles.Progress) -> None:
    """Packs into a temporary file beside `output`, which it then becomes."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.absolute().parent)
    except OSError as error:
        raise BundleError(f"{output} cannot be written: {error.strerror}; choose another place with -o") from error
    try:
        with os.fdopen(descriptor, "wb") as sink:
            archive.pack(bundle, sink, progress)
            sink.flush()
            os.fsync(sink.fileno())
        os.chmod(name, 0o644)
        os.replace(name, output)
    except OSError as error:
        os.unlink(name)
        raise BundleError(f"{output} cannot be written: {error.strerror}") from error
    except BaseException:
        os.unlink(name)
        raise
