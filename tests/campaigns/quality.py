"""Our 4 bits beside llama.cpp's, on a model of real text: KL divergence from f32 by bits per weight.

python -m tests.campaigns.quality --work DIR [--model DIR] [--build DIR] [--json FILE]

The model is trained here by examples/voice_assistant/training/train_prose.py where --model names none. Every file is
judged by llama.cpp's own llama-perplexity, ours too: Q4_0 and Q8_0 hold exactly the integers of w4 and w8, so our
calibrated weights are written as such. The same weights run in our runtime over the same tokens and positions, where
activations are rounded to 8 bits in groups of 32, as llama.cpp rounds them; that counts against us in both.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from crosscompile import calibrated, checkpoint
from crosscompile.checkpoint import Checkpoint
from edgellm import gguf_llama, llama_cpp
from edgellm.compile import compile_checkpoint
from edgellm.evaluate import Tally, runtime_logits
from edgellm.golden import host_target
from edgellm.precision import PLAIN, Options, Rounding, Wish, prepare
from edgellm.terminal import size
from edgellm.texts import Sample

TRAINING = Path(__file__).parents[2] / "examples" / "voice_assistant" / "training"
PROGRAMS = ("llama-perplexity", "llama-quantize")
LENGTH = 512
"""Tokens of a chunk; llama-perplexity measures the second half of each."""
F32 = {"body": "f32", "embedding": "f32", "head": "f32"}
PEERS = ("Q4_0", "Q4_K_M")


@dataclass(frozen=True)
class Result:
    """One row of the table. kl_peer, kl_own: nats, by llama-perplexity and by our runtime; None: not run there."""

    name: str
    bits_per_weight: float
    kl_peer: float
    top1_peer: float
    kl_own: float | None


def show(stage: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{stage} {done}/{total}   ", end="", file=sys.stderr)


def tensor_bits(file: Path, parameters: int) -> float:
    """Bits of all tensors of a GGUF file by weight of the checkpoint, embedding, head and norms included."""
    from gguf import GGUFReader

    return 8 * sum(int(tensor.n_bytes) for tensor in GGUFReader(file).tensors) / parameters


@dataclass(frozen=True)
class Judge:
    """llama-perplexity over one text. base: the exact model's logits, in its own file."""

    build: Path
    text: Path
    base: Path
    chunks: int

    def run(self, model: Path, *options: str) -> str:
        command = [str(self.build / "llama-perplexity"), "-m", str(model), "-f", str(self.text)]
        command += ["-c", str(LENGTH), "-b", str(LENGTH), "--chunks", str(self.chunks), "--kl-divergence-base"]
        done = subprocess.run([*command, str(self.base), *options], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"llama-perplexity failed on {model.name}: {done.stderr[-2000:]}")
        return done.stdout + done.stderr

    def divergence(self, model: Path) -> tuple[float, float]:
        """(mean KL in nats, share of equal most likely tokens)."""
        for _ in range(5):  # its logger is a thread that may lose the end
            text = self.run(model, "--kl-divergence")
            kl = re.search(r"Mean\s+KLD:\s+(-?[\d.]+)", text)
            top = re.search(r"Same top p:\s+([\d.]+)", text)
            if kl is not None and top is not None:
                return float(kl[1]), float(top[1]) / 100
        raise SystemExit(f"llama-perplexity said nothing of KLD: {text[-2000:]}")


def held_out(source: Checkpoint, texts: Path, file: Path, chunks: int) -> list[Sample]:
    """Writes the text that is judged on; returns its chunks of tokens, with the positions llama-perplexity takes."""
    from tokenizers import Tokenizer

    whole = "\n\n".join(json.loads(line)["text"] for line in texts.read_text(encoding="utf-8").splitlines())
    whole = whole[: chunks * LENGTH * 8]
    file.write_text(whole, encoding="utf-8")
    assert source.tokenizer_json is not None
    ids = Tokenizer.from_str(source.tokenizer_json.decode()).encode(whole, add_special_tokens=False).ids
    parts = [ids[at : at + LENGTH] for at in range(0, min(len(ids) // LENGTH, chunks) * LENGTH, LENGTH)]
    return [Sample(part, list(range(LENGTH // 2, LENGTH - 1))) for part in parts]


def own_divergence(source: Checkpoint, options: Options, rounding: Rounding, samples: list[Sample]) -> float:
    """The same by our runtime."""
    target = host_target()
    assert target is not None, "this machine runs no bundle"
    vocab = int(source.config["vocab_size"])
    exact = compile_checkpoint(source, "quality", target, Options("f32")).bundle.path
    bundle = compile_checkpoint(source, "quality", target, options, rounding=rounding).bundle.path
    tally = Tally()
    for index, sample in enumerate(samples):
        show("our runtime", index, len(samples))
        tally.add(runtime_logits(exact, sample.ids, vocab), runtime_logits(bundle, sample.ids, vocab), sample)
    return tally.kl / tally.n


def trained(work: Path, steps: int) -> Path:
    """The model, trained if it is not there."""
    model = work / "model"
    if not (model / "heldout.jsonl").is_file():
        command = [sys.executable, str(TRAINING / "train_prose.py"), "--work", str(work), "--output", str(model)]
        subprocess.run([*command, "--steps", str(steps)], check=True)
    return model


def ours(source: Checkpoint, work: Path, texts: Path, name: str, wish: Wish) -> tuple[Options, Rounding, Path]:
    """Options, rounding and GGUF file of one of our variants, all of it in 4 bits but for what a budget says."""
    target = host_target()
    assert target is not None, "this machine runs no bundle"
    options = Options("w4a8", "w4a8", "w4a8")
    rounding = prepare(source, target, options, wish, show) if wish != Wish() else PLAIN
    file = work / f"{name}.gguf"
    found = None if rounding.directory is None else calibrated.read(rounding.directory)
    scheme = {"body": "w4a8", "embedding": "w4a8", "head": "w4a8"}
    gguf_llama.write_llama(source, name, scheme, file, calibrated=found)
    return options, rounding, file


def table(results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    made = Table(title="KL divergence from f32 (nats)", title_justify="left")
    for heading in ("weights", "bits per weight", "by llama-perplexity", "same top token", "by our runtime"):
        made.add_column(heading, justify="left" if heading == "weights" else "right")
    for result in results:
        own = "" if result.kl_own is None else f"{result.kl_own:.5f}"
        cells = (f"{result.bits_per_weight:.3f}", f"{result.kl_peer:.5f}", f"{result.top1_peer:.2%}", own)
        made.add_row(result.name, *cells)
    Console(highlight=False).print(made)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what is trained and made, outside the repository")
    parser.add_argument("--model", type=Path, help="a LlamaForCausalLM with heldout.jsonl (default: trained in --work)")
    parser.add_argument("--steps", type=int, default=360, help="of that training (default: 360)")
    parser.add_argument("--calibrate", type=Path, help="text to calibrate on (default: train.txt of the training)")
    parser.add_argument("--build", type=Path, help=f"a directory with {' and '.join(PROGRAMS)} (default: built)")
    parser.add_argument("--chunks", type=int, default=40, help=f"of {LENGTH} tokens to judge on (default: 40)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    model = arguments.model or trained(work, arguments.steps)
    build = arguments.build or llama_cpp.build_peer("quality", {"GGML_NATIVE": "ON"}, PROGRAMS, show) / "bin"
    source = checkpoint.load(model)
    parameters = sum(tensor.n_bytes // 2 for tensor in source.tensors.values())
    exact, text = work / "f32.gguf", work / "heldout.txt"
    gguf_llama.write_llama(source, "f32", F32, exact)
    samples = held_out(source, model / "heldout.jsonl", text, arguments.chunks)
    judge = Judge(build, text, work / "base.kld", len(samples))
    judge.run(exact)
    print(f"{model}: {parameters:,} parameters; {len(samples)} chunks of {LENGTH} tokens; {size(exact.stat().st_size)}")

    results = []
    for kind in PEERS:
        file = work / f"{kind}.gguf"
        subprocess.run([build / "llama-quantize", exact, file, kind], check=True, capture_output=True)
        results.append(Result(f"llama.cpp {kind}", tensor_bits(file, parameters), *judge.divergence(file), None))
    texts = arguments.calibrate or work / "train.txt"
    most = int(4.6 * parameters / 8)
    for name, wish in (
        ("w4a8", Wish()),
        ("w4a8 calibrated", Wish(texts)),
        ("w4a8 calibrated, budget 4.6 bits", Wish(texts, most)),
    ):
        options, rounding, file = ours(source, work, texts, name.replace(" ", "-"), wish)
        own = own_divergence(source, options, rounding, samples)
        results.append(Result(f"edgellm {name}", tensor_bits(file, parameters), *judge.divergence(file), own))
        table(results)
    if arguments.json:
        facts = {"parameters": parameters, "chunks": len(samples), "results": [asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n")
    q4_0, q4_k_m, _, plain, mixed = results
    bars = (
        ("at most 4.6 bits, no worse than Q4_K_M", mixed, 4.6, q4_k_m.kl_peer),
        ("at most 4.5 bits (but for norms), no worse than 0.6 × Q4_0", plain, 4.52, 0.6 * q4_0.kl_peer),
    )
    held = [own.bits_per_weight <= bits and own.kl_peer <= most_kl for _, own, bits, most_kl in bars]
    for (bar, own, _, most_kl), holds in zip(bars, held, strict=True):
        print(f"{'holds' if holds else 'MISSED'}: {bar}: {own.kl_peer:.5f} at {own.bits_per_weight:.3f}, "
              f"the bar is {most_kl:.5f}")  # fmt: skip
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
