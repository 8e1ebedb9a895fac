"""What several answers at a time gain over one: `edgellm-rt serve` on this machine, one client and several in turn.

    python -m tests.campaigns.two_answers BUNDLE [--answers 2] [--tokens 64] [--rounds 5] [--at-least 1.6]

Decoding one token reads all weights once, and so does a step that computes one token of every answer. Prints the
throughput of each, tokens per second, and the median of the rounds' ratios; every answer must be the one that comes out
alone. Fails below --at-least.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def answer(port: int, index: int, n_tokens: int, stop_ids: Sequence[int]) -> str:
    """A greedy answer of exactly n_tokens tokens to a prompt of a few."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = {
        "prompt": [10 + 3 * index, 20, 30 + index, 40],
        "max_tokens": n_tokens,
        "temperature": 0,
        "logit_bias": {str(token): -10000 for token in stop_ids},
    }
    try:
        connection.request("POST", "/v1/completions", json.dumps(body))
        reply = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if reply.get("usage", {}).get("completion_tokens") != n_tokens:
        raise SystemExit(f"the server did not answer with {n_tokens} tokens: {reply}")
    return str(reply["choices"][0]["text"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--program", type=Path, metavar="FILE", help="another edgellm-rt than the bundle's own")
    parser.add_argument("--answers", type=int, default=2, metavar="N")
    parser.add_argument("--tokens", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--at-least", type=float, default=1.6, metavar="X")
    args = parser.parse_args(argv)
    stop_ids = json.loads((args.bundle / "manifest.json").read_text())["generation"]["stop_ids"]
    command = [str(args.program or args.bundle / "edgellm-rt"), "serve", str(args.bundle), "--port", "0", "--attached"]
    command += ["--sessions", str(args.answers), "--context", "512"]
    command += ["--threads", str(args.threads)] if args.threads else []
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        port = json.loads(server.stdout.readline())["port"]

        def timed(n: int, first: int = 0) -> tuple[float, list[str]]:
            start = time.monotonic()
            with ThreadPoolExecutor(n) as pool:
                texts = list(pool.map(lambda i: answer(port, first + i, args.tokens, stop_ids), range(n)))
            return n * args.tokens / (time.monotonic() - start), texts

        alone = [timed(1, index)[1][0] for index in range(args.answers)]
        timed(args.answers)
        ratios = []
        for _ in range(args.rounds):
            one, texts = timed(1)
            several, together = timed(args.answers)
            if texts != alone[:1] or together != alone:
                print("an answer is not what it is alone")
                return 1
            ratios.append(several / one)
            print(
                f"one {one:7.2f} tok/s   {args.answers} at a time {several:7.2f} tok/s   {several / one:5.2f} x",
                flush=True,
            )
    finally:
        server.stdin.close()
        server.wait()
    ratio = statistics.median(ratios)
    print(f"median {ratio:.2f} x")
    return 0 if ratio >= args.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
