"""Train the demo model on two CPU cores in less than an hour, and write it in Hugging Face format.

    python train.py --work build --output ../model

Every step makes its own conversations from its number, so nothing is seen twice, and a run that was interrupted goes on
from its last checkpoint in --work as if it had not been. Loss is taken on the assistant's tokens, and a little on the
user's. In the last part the layers compute with 4-bit weights (quantization-aware training), because w4a8 is how the
model is deployed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import names
import torch
import vocabulary
from conversations import Writer, conversations
from muon import Muon
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformer import Linear, Llama, Shape, fake_quantize

SEED = 20261124
N_SMALL_STEPS, N_SMALL_TOKENS, N_TOKENS = 600, 2048, 3072
"""The first steps see small homes only, and fewer tokens each."""
CHARACTERS_PER_TOKEN = 4.1
"""Enough text to fill a row, rarely much more."""
RATES = ((-1, 0.0), (59, 1.0), (1400, 1.0), (2600, 0.4), (3600, 0.0))
"""(step, part of the highest learning rate), straight lines between; the last step ends the run."""
N_STEPS = RATES[-1][0]
QUANTIZED_FROM = 3200
"""The step from which the layers compute with 4-bit weights."""
WEIGHTS = {"assistant": 1.0, "user": 0.2}
"""What a token counts in the loss. The user's are there because names in them are copies, too."""


def row_length(step: int) -> tuple[int, bool]:
    """Tokens of a step's rows, and whether its homes are small: these first, since they show the same things sooner."""
    draw = random.Random(f"{SEED} length {step}").random()
    if step < N_SMALL_STEPS or draw < 0.25:
        return 256, True
    return (512, False) if draw < 0.88 else (768, False)


def batch(tokenizer: Tokenizer, step: int, n_tokens: int, length: int, small: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, the ids that follow and what each of these counts, all (n_tokens // length, length)."""
    rng = random.Random(f"{SEED} {step}")
    shape = (n_tokens // length, length)
    ids = torch.full(shape, tokenizer.token_to_id(vocabulary.PAD))
    following, weights = ids.clone(), torch.zeros(shape)
    for row in range(shape[0]):
        conversation = Writer(rng, names.TRAIN, small).fill(int(length * CHARACTERS_PER_TOKEN))
        tokens, speakers = vocabulary.encode(tokenizer, conversation)
        n = min(len(tokens) - 1, length)
        ids[row, :n] = torch.tensor(tokens[:n])
        following[row, :n] = torch.tensor(tokens[1 : n + 1])
        weights[row, :n] = torch.tensor([WEIGHTS.get(speaker, 0.0) for speaker in speakers[1 : n + 1]])
    return ids, following, weights


def examine(model: Llama, tokenizer: Tokenizer, split: str, count: int) -> dict[str, list[int]]:
    """By category, how many answers the model would give word for word, and how many there are."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for conversation in itertools.islice(conversations(split, SEED), count):
        tokens, speakers = vocabulary.encode(tokenizer, conversation)
        ids = torch.tensor(tokens)
        with torch.no_grad():
            right = [False, *(model(ids[None, :-1])[0].argmax(-1) == ids[1:]).tolist()]
        runs = itertools.groupby(zip(speakers, right, strict=True), key=lambda pair: pair[0])
        verdicts = [all(good for _, good in run) for speaker, run in runs if speaker == "assistant"]
        for check, verdict in zip(conversation.checks.values(), verdicts, strict=True):
            counts[check.category][0] += verdict
            counts[check.category][1] += 1
    return counts


def summary(counts: dict[str, list[int]]) -> str:
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    parts = [f"{name} {right}/{n}" for name, (right, n) in sorted(counts.items())]
    return f"{100 * total[0] / total[1]:.1f} % of {total[1]}: " + ", ".join(parts)


def write_model(model: Llama, tokenizer: Tokenizer, directory: Path, quantized: bool) -> None:
    """Writes config.json, generation_config.json, model.safetensors (bfloat16) and the tokenizer's files.

    quantized: write the 4-bit values of the layers' weights, so that quantizing the file again loses almost nothing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    eos, pad = tokenizer.token_to_id(vocabulary.END), tokenizer.token_to_id(vocabulary.PAD)
    layers = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear)}
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        value = fake_quantize(value) if quantized and name in layers else value
        tensors[f"model.{name}"] = value.to(torch.bfloat16).contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    def write(name: str, content: dict[str, Any]) -> None:
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")

    (directory / "model.safetensors").chmod(0o644)
    write("config.json", model.shape.config(eos, pad))
    write("generation_config.json", {"eos_token_id": [eos, pad], "pad_token_id": pad, "do_sample": False})
    vocabulary.save(tokenizer, directory)


def rate_at(step: int) -> float:
    """The learning rate of a step as a part of the highest."""
    for (begin, low), (end, high) in itertools.pairwise(RATES):
        if step < end:
            return low + (high - low) * (step - begin) / (end - begin)
    return RATES[-1][1]


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--work", type=Path, default=Path("build"), help="checkpoints and log")
    parser.add_argument("--output", type=Path, required=True, help="the model's directory")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--embedding-rate", type=float, default=3e-3, help="the same for embedding and norms")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=math.inf, help="CPU time after which to stop at a checkpoint")
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    saved_tokenizer = arguments.work / "tokenizer.json"
    if not saved_tokenizer.exists():
        vocabulary.train().save(str(saved_tokenizer))
    tokenizer = Tokenizer.from_file(str(saved_tokenizer))
    model = Llama(Shape(vocab=tokenizer.get_vocab_size()))
    model.relate(vocabulary.spaced_pairs(tokenizer))
    model.start_copying()
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (Muon(matrices, weight_decay=0.05), arguments.rate),
        (torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0), arguments.embedding_rate),
    ]
    checkpoint, step = arguments.work / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for (optimizer, _), saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, vocabulary {tokenizer.get_vocab_size()}, from step {step}", flush=True)

    began, seen, losses = time.process_time(), 0, []
    while step < N_STEPS:
        quantized = step >= QUANTIZED_FROM
        model.quantize(quantized)
        for optimizer, highest in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = highest * rate_at(step)
        length, small = row_length(step)
        n_tokens = N_SMALL_TOKENS if step < N_SMALL_STEPS else N_TOKENS
        ids, following, weights = batch(tokenizer, step, n_tokens, length, small)
        wanted = weights > 0
        each = functional.cross_entropy(model(ids, wanted), following[wanted], reduction="none")
        loss = (each * weights[wanted]).sum() / weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        seen += n_tokens
        losses.append(each.detach()[weights[wanted] == 1].mean().item())
        if step % 50 == 0:
            elapsed = time.process_time() - began
            recent = sum(losses[-50:]) / len(losses[-50:])
            print(f"step {step} loss {recent:.4f}, {elapsed / 60:.1f} min of CPU time, "
                  f"{seen / elapsed:,.0f} tokens/s", flush=True)  # fmt: skip
        if step % 100 == 0 or step == N_STEPS:
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o, _ in optimizers], "step": step}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            write_model(model, tokenizer, arguments.output, quantized)
            for split in names.SPLITS:
                print(f"  {split}: {summary(examine(model, tokenizer, split, 20))}", flush=True)
            if time.process_time() - began > arguments.minutes * 60:
                break
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
