"""How long the first token takes with a long system prompt: shipped in the bundle, and computed.

    python -m tests.campaigns.first_token random:smollm2-135m random:tinyllama-1.1b [--tokens 1000] [--rounds 7]

Compiles each MODEL for this machine with a system prompt of about so many tokens, asks the bundle with its state and
the one without in turn, and prints medians. Both must answer the same. Fails where the first token from the shipped
state takes more than 5 % of the time of the computed one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgellm.compile import build
from edgellm.precision import Options
from edgellm.prefix import Prefix

MOST_SHARE = 0.05
SENTENCE = "You answer briefly, in the language of the question, and never guess what a device does. "


def ask(bundle: Path, prompt: Sequence[int]) -> dict[str, Any]:
    argv = [str(bundle / "edgellm-rt"), "run", str(bundle), "--tokens", ",".join(map(str, prompt)), "-n", "4"]
    done = subprocess.run([*argv, "--temperature", "0", "--json"], capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measure(model: str, options: Options, n_tokens: int, rounds: int) -> bool:
    plain = build(model, "local", options).bundle.path
    sample = build(model, "local", options, prefix=Prefix(SENTENCE * 4)).bundle
    length = 4 * len(SENTENCE) * n_tokens // int(sample.manifest["prefix"]["tokens"])
    made = build(model, "local", options, prefix=Prefix((SENTENCE * (length // len(SENTENCE) + 1))[:length])).bundle
    shipped, prompt = made.path, made.manifest["golden"][-1]["prompt"]  # a question behind the system prompt
    ask(shipped, prompt)  # so that neither begins with a cold disk
    samples: dict[Path, list[dict[str, Any]]] = {plain: [], shipped: []}
    for _ in range(rounds):
        for bundle, answers in samples.items():
            answers.append(ask(bundle, prompt))
    same = len({tuple(answer["ids"]) for answers in samples.values() for answer in answers}) == 1

    def median(bundle: Path, key: str) -> float:
        return statistics.median(float(answer[key]) for answer in samples[bundle])

    computed, ready = median(plain, "ttft_ms"), median(shipped, "ttft_ms")
    one = samples[shipped][0]
    print(
        f"{model:24}{one['prompt_tokens']:>8}{one['reused_tokens']:>8}{computed:12.1f}{ready:12.1f}"
        f"{100 * ready / computed:8.2f} %{median(plain, 'load_ms'):10.1f}{median(shipped, 'load_ms'):10.1f}"
        f"   {'the same answers' if same else 'THE ANSWERS DIFFER'}",
        flush=True,
    )
    return same and ready <= MOST_SHARE * computed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="checkpoint directory, Hub id or random:SHAPE")
    parser.add_argument("--tokens", type=int, default=1000, metavar="N")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--scheme", default="w4a8")
    args = parser.parse_args(argv)
    print(f"{'':24}{'prompt':>8}{'shipped':>8}{'computed ms':>12}{'shipped ms':>12}{'share':>10}{'opening ms':>20}")
    good = [measure(model, Options(args.scheme), args.tokens, args.rounds) for model in args.models]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
