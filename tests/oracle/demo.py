"""Writes tests/data/demo.json and demo_logits.npz: what transformers answers with the demo model, in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "voice_assistant" / "model"
OUTPUT = ROOT / "tests" / "data" / "demo.json"
LOGITS = ROOT / "tests" / "data" / "demo_logits.npz"
N_TOKENS = 32

SYSTEM = (
    "You are Ember, the assistant of this home.\nTime: 07:15, Monday\nOutside: 3 C, snow\n"
    "Rooms: hall 19 C, office 22 C\nLights: hall light off, reading lamp on 60%\nDoors: back door unlocked"
)
CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Turn on the light in the kitchen."}],
    [{"role": "user", "content": "which lights are on"}],
    [{"role": "user", "content": "Hello! What can you do?"}],
    [{"role": "user", "content": "how warm is it in the bedroom"}],
    [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "is the back door locked"}],
    [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "dim the reading lamp to thirty percent"}],
    [{"role": "user", "content": "Write me a poem about the sea."}],
    [
        {"role": "user", "content": "lock the garage door please"},
        {
            "role": "assistant",
            "content": '<tool_call>\n{"name": "lock", "arguments": {"device": "garage door"}}\n</tool_call>',
        },
        {"role": "tool", "content": '{"ok": true}'},
    ],
]


def main() -> None:
    """Regenerates both files."""
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    stop = set(json.loads((MODEL / "generation_config.json").read_text())["eos_token_id"])
    answers, last = [], []
    for messages in CONVERSATIONS:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = list(prompt)
        with torch.no_grad():
            for step in range(N_TOKENS):
                logits = model(torch.tensor([ids])).logits[0, -1]
                if step == 0:
                    last.append(logits.numpy())
                ids.append(int(logits.argmax()))
                if ids[-1] in stop:
                    break
        tokens = ids[len(prompt) :]
        answers.append({"messages": messages, "prompt": prompt, "tokens": tokens, "text": tokenizer.decode(tokens)})
        print(answers[-1]["text"])
    OUTPUT.write_text(json.dumps(answers, indent=1) + "\n")
    np.savez_compressed(LOGITS, last=np.stack(last))
    print(f"{OUTPUT}: {len(answers)} answers; {LOGITS}: {LOGITS.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
