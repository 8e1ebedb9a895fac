"""Train a small Llama on English prose found on this machine, and write it in Hugging Face format.

    python train_prose.py --work build --output DIRECTORY [--steps 360]

It is what quantization is judged by: more than ten million parameters, rows that 256 divides, real text. A run that was
interrupted goes on from its last checkpoint in --work. The output has the model and heldout.jsonl, text that it never saw.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from pathlib import Path

import prose
import torch
from muon import Muon
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformer import Llama, Shape

SEED = 20261126
END = "<|endoftext|>"
VOCAB_SIZE = 4096
TOKENIZER_CHARACTERS = 8_000_000
"""Of the text, what the merges are learned from."""
LENGTH, N_TOKENS = 256, 4096
"""Tokens of a row and of a step."""
EMBEDDING_SCALE = 0.4
"""So that an untrained network does not predict each token to follow itself: wider rows need smaller values."""
WARM_UP, DECAY = 20, 0.5
"""Steps until the highest learning rate, and the part of the run at whose end it falls to nothing."""


def shape(vocab: int) -> Shape:
    """11.5 million parameters."""
    return Shape(vocab, hidden=512, intermediate=1024, layers=4, heads=8, kv_heads=4, head_dim=64, rope_theta=10000.0)


def train_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE with GPT-2's expression."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text[:TOKENIZER_CHARACTERS].split("\n\n"), trainer)
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return tokenizer


def rows_of(tokenizer: Tokenizer, documents: list[str]) -> Tensor:
    """All documents one after another, cut into rows (n, LENGTH + 1) in random order."""
    end = tokenizer.token_to_id(END)
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(documents):
        ids += [end, *encoding.ids]
    rows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH + 1])
    rows = rows[: (len(rows) - 1) // LENGTH * LENGTH + 1].unfold(0, LENGTH + 1, LENGTH)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))]


def rate_at(step: int, n_steps: int) -> float:
    """The learning rate of a step as a part of the highest."""
    return min((step + 1) / WARM_UP, 1.0, (n_steps - step) / (DECAY * n_steps))


def write_model(model: Llama, tokenizer: Tokenizer, directory: Path) -> None:
    """Writes config.json, generation_config.json, model.safetensors (bfloat16) and the tokenizer's files."""
    directory.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id(END)
    tensors = {f"model.{name}": value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    tokenizer.save(str(directory / "tokenizer.json"))
    class_ = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "clean_up_tokenization_spaces": False}
    for name, content in (
        ("config.json", model.shape.config(end, end)),
        ("generation_config.json", {"eos_token_id": [end], "pad_token_id": end, "do_sample": False}),
        ("tokenizer_config.json", class_),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")


def loss_of(model: Llama, rows: Tensor) -> Tensor:
    """Mean cross entropy of rows (n, LENGTH + 1)."""
    logits = model(rows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a model on English prose from this machine.")
    parser.add_argument("--work", type=Path, default=Path("build"), help="text, checkpoints and log")
    parser.add_argument("--output", type=Path, required=True, help="the model's directory")
    parser.add_argument("--steps", type=int, default=360, help=f"of {N_TOKENS} tokens each (default: 360)")
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)
    work = arguments.work
    if not (work / "heldout.jsonl").exists():
        prose.write(work)
    documents = (work / "train.txt").read_text(encoding="utf-8").split("\f")
    random.Random(SEED).shuffle(documents)
    saved_tokenizer = work / "tokenizer.json"
    if not saved_tokenizer.exists():
        train_tokenizer("\n\n".join(documents)).save(str(saved_tokenizer))
    tokenizer = Tokenizer.from_file(str(saved_tokenizer))
    held = [json.loads(line)["text"] for line in (work / "heldout.jsonl").read_text().splitlines()]
    heldout = rows_of(tokenizer, held)[:64]
    wanted = arguments.steps * N_TOKENS * 6  # characters; a token has four or five
    texts, total = [], 0
    for text in documents:
        texts.append(text)
        total += len(text)
        if total > wanted:
            break
    rows = rows_of(tokenizer, texts)

    model = Llama(shape(tokenizer.get_vocab_size()))
    with torch.no_grad():
        model.embed_tokens.weight *= EMBEDDING_SCALE
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, weight_decay=0.05),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    checkpoint, step = work / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {rows.numel():,} tokens of text, from step {step}", flush=True)

    began, losses, per_step = time.process_time(), [], N_TOKENS // LENGTH
    while step < arguments.steps:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = arguments.rate * rate_at(step, arguments.steps)
        taken = torch.arange(step * per_step, (step + 1) * per_step) % len(rows)
        loss = loss_of(model, rows[taken])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        losses.append(loss.item())
        if step % 10 == 0:
            recent, elapsed = sum(losses[-10:]) / len(losses[-10:]), time.process_time() - began
            print(f"step {step} loss {recent:.4f}, {elapsed / 60:.1f} min of CPU time", flush=True)
        if step % 50 == 0 or step == arguments.steps:
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            with torch.no_grad():
                print(f"  held out: {loss_of(model, heldout).item():.4f}", flush=True)
    write_model(model, tokenizer, arguments.output)
    shutil.copyfile(work / "heldout.jsonl", arguments.output / "heldout.jsonl")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
