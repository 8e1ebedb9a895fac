"""Train the demo model on the CPU in about fifty minutes on two free cores and write it in Hugging Face format.

    python train.py --work build --output ../model

Fresh conversations are generated for every step, so nothing is seen twice. Loss is taken on the assistant's tokens only.
In the last part the layers compute with 4-bit weights (quantization-aware training), because w4a8 is how the model is
deployed. A run that was interrupted goes on from its last checkpoint in --work.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import names
import torch
import vocabulary
from conversations import Conversation, conversations
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformer import Linear, Llama, Shape, fake_quantize

SEED = 20261124
POOL = 512
"""Conversations generated at a time, sorted by length and cut into batches with little padding."""
STRIDE = 64
"""Lengths are rounded up to multiples of it: oneDNN compiles and caches a kernel for every new shape."""


def batches(tokenizer: Tokenizer, seed: int, batch_tokens: int, longest: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, wanted): (batch, length) token ids and the positions whose next token is the assistant's."""
    stream: Iterator[Conversation] = conversations(names.TRAIN, seed)
    shuffle = torch.Generator().manual_seed(seed)
    pad = tokenizer.token_to_id(vocabulary.PAD)
    while True:
        pool = [vocabulary.encode(tokenizer, next(stream)) for _ in range(POOL)]
        pool = sorted((item for item in pool if len(item[0]) <= longest), key=lambda item: len(item[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for item in pool:
            length = -(-len(item[0]) // STRIDE) * STRIDE
            if groups[-1] and (len(groups[-1]) + 1) * length > batch_tokens:
                groups.append([])
            groups[-1].append(item)
        for index in torch.randperm(len(groups), generator=shuffle).tolist():
            group = groups[index]
            length = -(-max(len(ids) for ids, _ in group) // STRIDE) * STRIDE
            ids = torch.full((len(group), length), pad)
            wanted = torch.zeros((len(group), length), dtype=torch.bool)
            for row, (tokens, mask) in enumerate(group):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                wanted[row, : len(tokens) - 1] = torch.tensor(mask[1:])
            yield ids, wanted


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


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--work", type=Path, default=Path("build"), help="checkpoints and log")
    parser.add_argument("--output", type=Path, required=True, help="the model's directory")
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--quantized-steps", type=int, default=1000, help="of these, the last steps with 4-bit weights")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--longest", type=int, default=640, help="longest conversation in tokens")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after a checkpoint when they are over")
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    saved_tokenizer = arguments.work / "tokenizer.json"
    if not saved_tokenizer.exists():
        vocabulary.train().save(str(saved_tokenizer))
    tokenizer = Tokenizer.from_file(str(saved_tokenizer))
    model = Llama(Shape(vocab=tokenizer.get_vocab_size()))
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=arguments.rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=arguments.rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    checkpoint, step = arguments.work / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, vocabulary {tokenizer.get_vocab_size()}, from step {step}", flush=True)

    stream = batches(tokenizer, SEED + step, arguments.batch_tokens, arguments.longest)
    began, seen, losses = time.monotonic(), 0, []
    while step < arguments.steps:
        quantized = step >= arguments.steps - arguments.quantized_steps
        if quantized:
            model.quantize()
        progress = step / arguments.steps
        rate = arguments.rate * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        ids, wanted = next(stream)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids, wanted)
        targets = torch.roll(ids, -1, 1)[wanted]
        loss = functional.cross_entropy(logits.float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        seen += ids.numel()
        losses.append(loss.item())
        if step % 50 == 0:
            elapsed = time.monotonic() - began
            left = (arguments.steps - step) * elapsed / max(1, len(losses))
            recent = sum(losses[-50:]) / len(losses[-50:])
            print(f"step {step} loss {recent:.4f} rate {rate:.2e} {seen / elapsed:,.0f} tokens/s, {left / 60:.1f} min left",
                  flush=True)  # fmt: skip
        if step % 250 == 0 or step == arguments.steps:
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            write_model(model, tokenizer, arguments.output, quantized)
            if time.monotonic() - began > arguments.minutes * 60:
                break
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
