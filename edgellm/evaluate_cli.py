"""Measure how much a scheme changes the model: Kullback-Leibler divergence from f32, top-1 agreement, perplexity.

TEXTS should be text the model was not trained on: a .jsonl file with {"messages": [...]} or {"text": "..."} per line,
or plain text in paragraphs. Of conversations, only the assistant's answers are measured. Every scheme is compiled for
this machine; every board computes the same bits.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from crosscompile import checkpoint
from edgellm import hub
from edgellm.compile_cli import SCHEMES, StageDisplay
from edgellm.evaluate import N_TOKENS, Quality, evaluate
from edgellm.precision import Options
from edgellm.terminal import size
from edgellm.texts import read_texts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edgellm eval`."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint directory or Hub id (org/name[@revision])")
    parser.add_argument("texts", metavar="TEXTS", type=Path, help="held-out conversations (.jsonl) or text")
    parser.add_argument(
        "--scheme",
        choices=SCHEMES,
        metavar="SCHEME",
        action="append",
        help="one that `edgellm compile --help` lists; may be given several times (default: f16, w8a8 and w4a8)",
    )
    parser.add_argument(
        "--embedding", choices=SCHEMES, metavar="SCHEME", help="scheme of the token embedding, if it should differ"
    )
    parser.add_argument(
        "--head", choices=SCHEMES, metavar="SCHEME", help="scheme of the output head, if it should differ"
    )
    parser.add_argument("--kv", choices=("f16", "i8", "f32"), help="type of the KV cache (default: f16)")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="texts taken from the file (default: 100)")
    parser.add_argument(
        "--tokens", type=int, default=N_TOKENS, metavar="N", help=f"tokens taken of each text (default: {N_TOKENS})"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def main(args: argparse.Namespace) -> int:
    """Runs `edgellm eval`."""
    with StageDisplay(quiet=args.json) as display:
        path, name = hub.resolve(args.model, display.update)
        source = checkpoint.load(path)
        texts = read_texts(args.texts, source)[: args.limit]
        names = args.scheme or ("f16", "w8a8", "w4a8")
        schemes = [Options(scheme, args.embedding, args.head, args.kv) for scheme in names]
        results = evaluate(source, name, schemes, texts, args.tokens, display.update)
    if args.json:
        print(json.dumps({"model": name, "texts": len(texts), "schemes": [asdict(result) for result in results]}))
    else:
        show(name, len(texts), results)
    return 0


def show(name: str, n_texts: int, results: list[Quality]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    title = f"{name} on {n_texts} held-out texts, {results[0].n_positions} tokens"
    table = Table(title=title, title_justify="left")
    for heading in ("scheme", "weights", "KL from f32 (nats)", "top-1 agreement", "perplexity", "max logit error"):
        table.add_column(heading, justify="left" if heading == "scheme" else "right")
    for result in results:
        table.add_row(
            result.scheme,
            size(result.weight_bytes),
            f"{result.kl_nats:.5f}",
            f"{result.top1_agreement:.2%}",
            f"{result.perplexity:.3f}",
            f"{result.max_logit_error:.1e}",
        )
    Console(highlight=False).print(table)
