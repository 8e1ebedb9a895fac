"""`edgellm bench --peer`: models here and with a peer, in one interleaved run."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crosscompile import checkpoint
from crosscompile.checkpoint import Checkpoint
from edgellm import __version__, cache, gguf_file, gguf_llama, hub, peer, peer_report, peer_result
from edgellm.bandwidth import build_probe
from edgellm.boards import load_board
from edgellm.bundle import Bundle
from edgellm.compile import Options, compile_checkpoint
from edgellm.errors import ModelError, UsageError
from edgellm.golden import host_target
from edgellm.peer_bench import BLOCK, FIGURES, Figure, Match, cells, measure, sizes
from edgellm.sample import Quiet

Progress = Callable[[str, int, int], None]

MATCHES: dict[str, Options] = {
    "w4a8": Options("w4a8"),
    "w8a8": Options("w8a8"),
    "w4a8-head4": Options("w4a8", embedding="w4a8", head="w4a8"),
}
"""What is compared, by name; the peer gets the same bits in every tensor (edgellm.gguf_llama)."""

DEFAULT_MODEL = "random:smollm2-135m"
_KINDS = {"decode": "decode", "prefill": "prefill", "first": "first_token"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that only a comparison has."""
    group = parser.add_argument_group("comparison with a peer, on this machine")
    group.add_argument("models", nargs="*", metavar="MODEL", help=f"a checkpoint or random:SHAPE ({DEFAULT_MODEL})")
    group.add_argument("--peer", choices=peer.NAMES, help="fetch and build this program, and compare with it")
    group.add_argument("--peer-build", type=Path, metavar="DIR", help="use the programs there instead of building")
    group.add_argument(
        "--weights", metavar="NAME,…", default=",".join(MATCHES), help="what to compare (default: %(default)s)"
    )
    names = ",".join(_short(figure) for figure in FIGURES)
    group.add_argument("--figures", metavar="NAME,…", default=names, help="what to measure (default: %(default)s)")
    group.add_argument("--quiet-below", type=float, metavar="CPUS", help="wait until others use less, repeat if not")
    group.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="keep performance.json, .svg and .md there, e.g. docs"
    )


def main(args: argparse.Namespace) -> int:
    """Runs the comparison."""
    from edgellm.compile_cli import StageDisplay

    matches, figures, threads = parse(args)
    old = None
    if args.output is not None:
        if not args.output.is_dir():
            raise UsageError(f"{args.output} is not a directory")
        file = args.output / "performance.json"
        old = peer_result.read(file) if file.is_file() else None
    new: dict[str, Any] | None = None
    with StageDisplay(quiet=args.json) as display:
        comparison = Comparison(args.peer_build, args.repeat or 5, Quiet(args.quiet_below), display.update)
        for model in args.models or [DEFAULT_MODEL]:
            measured = comparison.measure(model, matches, figures, threads)
            new = peer_result.merge(new, measured)
            if args.output is not None:  # a later model may fail after an hour
                old = peer_result.merge(old, measured)
                peer_result.write(old, args.output / "performance.json")
                peer_report.write_files(old, args.output, shlex.join(["edgellm", *sys.argv[1:]]))
    if args.json:
        print(json.dumps(new))
    elif new is not None:
        peer_report.show(new)
    return 0


def _short(figure: Figure) -> str:
    kind = next(short for short, kind in _KINDS.items() if kind == figure.kind)
    return f"{kind}@{figure.depth if figure.kind == 'decode' else figure.tokens}"


def _figure(text: str) -> Figure:
    """`decode@DEPTH`, `prefill@TOKENS`, `first@TOKENS`."""
    kind, _, number = text.partition("@")
    if kind not in _KINDS or not number.isdigit() or (kind != "decode" and int(number) < 1):
        raise UsageError(f"--figures: {text!r} is none; write decode@DEPTH, prefill@TOKENS or first@TOKENS")
    return Figure("decode", 64, int(number)) if kind == "decode" else Figure(_KINDS[kind], int(number))


def parse(args: argparse.Namespace) -> tuple[list[str], list[Figure], list[int]]:
    """(matches, figures, thread counts). Raises UsageError."""
    matches = args.weights.split(",")
    for name in matches:
        if name not in MATCHES:
            raise UsageError(f"--weights: there is no {name!r}; there are {', '.join(MATCHES)}")
    for option in ("board", "host", "model", "prompt", "generate"):
        if getattr(args, option) is not None:
            raise UsageError(f"--{option} does not go with --peer, which runs here; --figures says what is measured")
    return matches, [_figure(text) for text in args.figures.split(",")], args.threads or [1, 2]


class Comparison:
    """The peer, the probe and how to measure, set up once. Raises PeerError for what is missing."""

    def __init__(self, build: Path | None, rounds: int, quiet: Quiet, progress: Progress) -> None:
        target = host_target()
        if target is None:
            raise ModelError("a comparison runs here, and this machine's CPU has no tier to run")
        self._target, self._rounds, self._quiet, self._progress = target, rounds, quiet, progress
        self._peer, self._probe = peer.find(build, progress), build_probe(target)

    def measure(
        self, model: str, matches: Sequence[str], figures: Sequence[Figure], threads: Sequence[int]
    ) -> dict[str, Any]:
        """One interleaved run of a model, as edgellm.peer_result's document."""
        with _prepared(model, matches, figures, self._progress) as prepared:
            taken = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            rows = measure(cells(prepared, threads), self._rounds, self._peer, self._probe, self._quiet, self._progress)
            measured = {f"{match.bundle.name}, {match.label}": sizes(match.bundle, self._peer) for match in prepared}
        local = load_board("local")
        return {
            "format": peer_result.FORMAT,
            "edgellm": __version__,
            "machine": {
                "cpu": local.cpu,
                "n_cores": local.n_cores,
                "tier": self._target.tier.name,
                "ram_bytes": local.memory_bytes,
                "kernel": platform.release(),
            },
            "peer": {"name": "llama.cpp", "commit": self._peer.commit(), "package": f"{peer.PACKAGE} {peer.VERSION}"},
            "rows": [{**row, "taken": taken} for row in rows],
            "sizes": measured,
            "instructions": [],
        }


@contextlib.contextmanager
def _prepared(
    model: str, matches: Sequence[str], figures: Sequence[Figure], progress: Progress
) -> Iterator[list[Match]]:
    """Bundles and the peer's files of a model, with a prompt for each figure that starts with text."""
    target = host_target()
    assert target is not None
    path, name = hub.resolve(model, progress)
    source = checkpoint.load(path)
    with tempfile.TemporaryDirectory(prefix="edgellm-bench-") as folder:
        n_tokens = next((figure.tokens for figure in figures if figure.kind == "first_token"), 1)
        prompt = Path(folder) / "prompt.txt"
        prompt.write_text(prompt_text(source, n_tokens), encoding="utf-8")
        prepared = []
        for label in matches:
            bundle = compile_checkpoint(source, name, target, MATCHES[label], progress=progress).bundle
            fitting = fit(figures, int(bundle.manifest["model"]["context_length"]))
            prepared.append(Match(label, bundle, gguf_of(source, bundle, progress), prompt, fitting))
        yield prepared


def fit(figures: Sequence[Figure], context: int) -> tuple[Figure, ...]:
    """The figures, none deeper than the model's context allows; what does not fit at all is left out."""
    shallower = [replace(it, depth=min(it.depth, (context - it.tokens) // BLOCK * BLOCK)) for it in figures]
    return tuple(dict.fromkeys(it for it in shallower if it.depth >= 0 and it.tokens + 2 <= context))


def gguf_of(source: Checkpoint, bundle: Bundle, progress: Progress) -> Path:
    """The peer's file with the bundle's numbers, written if the cache does not have it."""
    scheme = {part: bundle.manifest["scheme"][part] for part in ("body", "embedding", "head")}
    writer = [Path(module.__file__ or "").read_text(encoding="utf-8") for module in (gguf_file, gguf_llama)]
    key = cache.key_of({"checkpoint": bundle.manifest["provenance"]["checkpoint"], "scheme": scheme, "writer": writer})
    file = cache.root() / "peers" / "gguf" / f"{bundle.name}-{key[:12]}.gguf"
    file.parent.mkdir(parents=True, exist_ok=True)
    with cache.locked(key):
        if not file.is_file():
            gguf_llama.write_llama(source, bundle.name, scheme, file, progress)
    return file


def prompt_text(source: Checkpoint, n_tokens: int) -> str:
    """English that the checkpoint's tokenizer makes exactly n_tokens of, what it adds included. Raises ModelError."""
    from tokenizers import Tokenizer

    if source.tokenizer_json is None:
        raise ModelError(f"{source.path} has no tokenizer.json")
    tokenizer = Tokenizer.from_str(source.tokenizer_json.decode("utf-8"))
    words = "the quick program reads a file and writes a line to the output of that other one when it is done".split()
    text = ""
    for i in range(20 * n_tokens):
        for word in (words[i % len(words)], "a"):
            longer = f"{text} {word}".strip()
            n = len(tokenizer.encode(longer).ids)
            if n == n_tokens:
                return longer
            if n < n_tokens:
                text = longer
                break
    raise ModelError(f"{source.path}: no text of exactly {n_tokens} tokens was found; choose another --figures first@N")
