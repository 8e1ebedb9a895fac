"""`edgellm bench --peer`: models here and with a peer, in one interleaved run."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgellm import comparison, peer_report, peer_result
from edgellm.comparison import MATCHES, PEERS, Comparison
from edgellm.cross_peer import PROCESSORS
from edgellm.errors import UsageError
from edgellm.figure import Figure
from edgellm.peer import Peer
from edgellm.sample import Quiet

DEFAULT_MODEL = "random:smollm2-135m"
_KINDS = {"decode": "decode", "prefill": "prefill", "first": "first_token"}


_PLACES = ("--peer-build", "-o", "--output")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that only a comparison has."""
    group = parser.add_argument_group("comparison with a peer, on this machine")
    group.add_argument("models", nargs="*", metavar="MODEL", help=f"a checkpoint or random:SHAPE ({DEFAULT_MODEL})")
    group.add_argument("--peer", choices=tuple(PEERS), help="fetch this program, build it if need be, and compare")
    group.add_argument("--peer-build", type=Path, metavar="DIR", help="use the programs there instead of fetching any")
    for option, what, defaults in (
        ("--weights", "compare", lambda peer: peer.weights),
        ("--figures", "measure", lambda peer: map(_short, peer.figures)),
    ):
        known = "; ".join(f"{name}: {','.join(defaults(peer))}" for name, peer in PEERS.items())
        group.add_argument(option, metavar="NAME,…", help=f"what to {what} (default with {known})")
    group.add_argument("--quiet-below", type=float, metavar="CPUS", help="wait until others use less, repeat if not")
    group.add_argument(
        "--emulated", metavar="CPU,…", help=f"count instructions instead of time; all, or of: {', '.join(PROCESSORS)}"
    )
    group.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="keep performance.json, .svg and .md there, e.g. docs"
    )


def main(args: argparse.Namespace) -> int:
    """Runs the comparison."""
    from edgellm.compile_cli import StageDisplay

    matches, figures, processors = parse(args)
    old = None
    if args.output is not None:
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"-o {args.output}: {error.strerror}; name a directory") from error
        file = args.output / "performance.json"
        old = peer_result.read(file) if file.is_file() else None
    new: dict[str, Any] | None = None
    with StageDisplay(quiet=args.json) as display:
        show = display.update
        if not processors:
            comparing = Comparison(PEERS[args.peer], args.peer_build, args.repeat or 5, Quiet(args.quiet_below), show)
        for model in args.models or [DEFAULT_MODEL]:
            if processors:
                measured = comparison.count(model, matches, [PROCESSORS[name] for name in processors], show)
            else:
                measured = comparing.measure(model, matches, figures, args.threads or [1, 2])
            new = peer_result.merge(new, measured)
            if args.output is not None:  # a later model may fail after an hour
                old = peer_result.merge(old, measured)
                peer_result.write(old, args.output / "performance.json")
                peer_report.write_files(old, args.output, _repeatable(sys.argv[1:]))
    if args.json:
        print(json.dumps(new))
    elif new is not None:
        peer_report.show(new)
    return 0


def _repeatable(argv: Sequence[str]) -> str:
    """The command as others would give it: without the places of this machine."""
    kept, skip = ["edgellm"], False
    for word in argv:
        if not skip and word not in _PLACES and not word.startswith(tuple(f"{name}=" for name in _PLACES)):
            kept.append(word)
        skip = word in _PLACES
    return shlex.join(kept)


def _short(figure: Figure) -> str:
    kind = next(short for short, kind in _KINDS.items() if kind == figure.kind)
    return f"{kind}@{figure.depth if figure.kind == 'decode' else figure.tokens}"


def _figure(text: str) -> Figure:
    """`decode@DEPTH`, `prefill@TOKENS`, `first@TOKENS`."""
    kind, _, number = text.partition("@")
    if kind not in _KINDS or not number.isdigit() or (kind != "decode" and int(number) < 1):
        raise UsageError(f"--figures: {text!r} is none; write decode@DEPTH, prefill@TOKENS or first@TOKENS")
    return Figure("decode", 64, int(number)) if kind == "decode" else Figure(_KINDS[kind], int(number))


def parse(args: argparse.Namespace) -> tuple[list[str], list[Figure], list[str]]:
    """(matches, figures, emulated processors). Raises UsageError."""
    peer = PEERS[args.peer]
    matches = list(peer.weights) if args.weights is None else args.weights.split(",")
    figures = list(peer.figures) if args.figures is None else [_figure(text) for text in args.figures.split(",")]
    processors = [] if args.emulated is None else list(PROCESSORS)
    if args.emulated not in (None, "all"):
        processors = args.emulated.split(",")
    for option, names, known in (("weights", matches, MATCHES), ("emulated", processors, PROCESSORS)):
        for name in names:
            if name not in known:
                raise UsageError(f"--{option}: there is no {name!r}; there are {', '.join(known)}")
    for option in ("board", "host", "model", "prompt", "generate"):
        if getattr(args, option) is not None:
            raise UsageError(f"--{option} does not go with --peer, which runs here; --figures says what is measured")
    _check(peer, figures, processors)
    return matches, figures, processors


def _check(peer: type[Peer], figures: Sequence[Figure], processors: Sequence[str]) -> None:
    """Raises UsageError for what this peer cannot be measured with."""
    if processors and not peer.emulated:
        able = ", ".join(name for name, other in PEERS.items() if other.emulated)
        raise UsageError(f"--emulated: instructions of {peer.name} cannot be counted; those of {able} can")
    for figure in figures:
        if figure.kind not in peer.kinds:
            kinds = ", ".join(short for short, kind in _KINDS.items() if kind in peer.kinds)
            raise UsageError(f"--figures: {_short(figure)} cannot be measured with {peer.name}; there are {kinds}")
