"""Measure the model on a board: prefill and decode speed, time to first token, load time, peak memory, the bandwidth of
the memory, or of the GPU's, and how much of it decoding uses, heat, and tokens per joule where the board has a sensor.

With --compare, two results are set side by side. With --peer, models are measured on this machine instead, in turn with
another program that runs them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgellm import peer_cli
from edgellm.errors import UsageError
from edgellm.selection import add_board, add_computing_device, add_model, selected_model

_EPILOG = """\
examples:
  edgellm bench --board kitchen
  edgellm bench --board kitchen --threads 1,2,4 --depth 0,512,2048 --report kitchen.html
  edgellm bench --board kitchen --sustained 10 --report heat.html       ten minutes: does it throttle?
  edgellm bench --board kitchen --json before.json                      … change something, deploy …
  edgellm bench --board kitchen --json after.json && edgellm bench --compare before.json after.json
  edgellm bench --compare kitchen:mine-w4a8 kitchen:mine-w8a8 --force   two models on a board, in turn
  edgellm bench --peer llama.cpp random:smollm2-135m random:llama-2-7b -o docs
  edgellm bench --peer litert-lm random:smollm2-135m --threads 1,2
"""

COUNT_CAP = 16
"""Lengths and thread counts in one list; edgellm-rt takes no more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_board(parser, required=False)
    add_model(parser)
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--prompt", type=_counts(1), metavar="N,…", help="lengths of prompts in tokens (default: 128,512)"
    )
    what.add_argument("--depth", type=_counts(0), metavar="N,…", help="positions before decoding (default: 0,512)")
    what.add_argument("--generate", type=_count, metavar="N", help="tokens to decode for a sample (default: 64)")
    what.add_argument(
        "--threads", type=thread_counts, metavar="N,…", help="threads; without it the runtime finds out what is fastest"
    )
    what.add_argument(
        "--repeat", type=_count, metavar="N", help="samples of a figure (default: 5, fewer where they take over 10 s)"
    )
    what.add_argument("--context", type=_count, metavar="N", help="positions to make room for")
    add_computing_device(what)
    what.add_argument(
        "--sustained", type=_minutes, metavar="MINUTES", help="then decode for so long: what heat does to the speed"
    )
    what.add_argument("--cold", action="store_true", help="also start with the bundle dropped from the page cache")
    out = parser.add_argument_group("output")
    out.add_argument(
        "--json", nargs="?", type=Path, const=Path("-"), metavar="FILE", help="every sample as JSON, to FILE or here"
    )
    out.add_argument("--report", type=Path, metavar="FILE", help="a page with plots, FILE.html, or the plots, FILE.svg")
    compare = parser.add_argument_group("comparison of two results")
    compare.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="files of --json, or BOARD[:MODEL] twice, measured in turn"
    )
    compare.add_argument("--force", action="store_true", help="compare although model or scheme differ")
    peer_cli.add_arguments(parser)


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def _minutes(text: str) -> float:
    if not 0 < (value := float(text)) <= 1440:
        raise ValueError
    return value


def _counts(least: int) -> Any:
    def counts(text: str) -> list[int]:
        values = [int(part) for part in text.split(",")]
        if min(values) < least or len(values) > COUNT_CAP:
            raise ValueError
        return list(dict.fromkeys(values))

    return counts


def thread_counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1 or len(counts) > COUNT_CAP:
        raise ValueError
    return counts


def main(args: argparse.Namespace) -> int:
    if args.peer is not None:
        if args.json not in (None, Path("-")):
            raise UsageError(f"--json {args.json}: with --peer it prints here; put it behind the models")
        for name in ("depth", "context", "sustained", "report", "compare", "cold", "force"):
            if getattr(args, name):
                raise UsageError(f"--{name} does not go with --peer, which runs here; --figures says what is measured")
        return peer_cli.main(args)
    if args.models:
        raise UsageError("a MODEL goes with --peer; a board has its model: --model NAME")
    if args.output is not None:
        raise UsageError("-o goes with --peer; a board's figures are written by --json FILE and --report FILE")
    if args.compare is not None:
        from edgellm import bench_compare

        return bench_compare.main(args)
    if args.board is None:
        raise UsageError("which board? --board BOARD, see `edgellm boards`; or --peer llama.cpp on this machine")
    return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    from edgellm import bench_report, bench_result, bench_run, bench_show
    from edgellm.boards import find_board
    from edgellm.compile_cli import StageDisplay

    if args.report is not None:
        bench_report.check_name(args.report)
    here = args.json == Path("-")
    with selected_model(args) as model, StageDisplay(quiet=here) as display:
        document = bench_run.measure(model, find_board(args.board, args.host), wanted(args), display.update)
    if args.json is not None and not here:
        bench_result.write(document, args.json)
    if args.report is not None:
        bench_report.write(document, args.report)
    if here:
        print(json.dumps(document))
    else:
        bench_show.show(document)
        for file in (args.json, args.report):
            if file is not None:
                print(f"written: {file}")
    return 0


def wanted(args: argparse.Namespace) -> Any:
    """What the arguments ask for, as edgellm.bench_run.Wanted."""
    from edgellm.bench_run import Wanted

    return Wanted(
        prompts=tuple(args.prompt or ()),
        depths=tuple(args.depth or ()),
        threads=tuple(args.threads or (None,)),
        generate=args.generate,
        repeat=args.repeat,
        context=args.context,
        device=args.device,
        sustained_s=max(1, round(60 * args.sustained)) if args.sustained else 0,
        cold=args.cold,
    )
