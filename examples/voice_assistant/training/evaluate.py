"""Measure the demo model on conversations whose sentence patterns and names it has never seen.

    python evaluate.py ../model --count 200

Each assistant message is generated greedily after the conversation's true beginning. A tool call counts if its name and
arguments are exactly right, an answer if it holds every fact it must hold and none of those it must not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import names
import torch
from conversations import TOOLS, Check, Conversation, conversations
from judge import right
from transformer import fake_quantize
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Case:
    """One assistant message: the conversation before it as text, the user's last words, the true answer."""

    prompt: str
    asked: str
    expected: str
    check: Check


def cases(conversation: Conversation, tokenizer: Any) -> Iterator[Case]:
    """The cases of one conversation."""
    tools = TOOLS if conversation.tools else None
    for index, check in conversation.checks.items():
        before = conversation.messages[:index]
        prompt = tokenizer.apply_chat_template(before, tools=tools, tokenize=False, add_generation_prompt=True)
        asked = next(message["content"] for message in reversed(before) if message["role"] == "user")
        truth = conversation.messages[index]
        calls = "; ".join(json.dumps(call["function"]) for call in truth.get("tool_calls", ()))
        yield Case(prompt, asked, truth["content"] or calls, check)


def answers(model: Any, tokenizer: Any, prompts: list[str], batch: int) -> list[str]:
    """Greedy continuations of the prompts, up to 96 tokens each, in the order of the prompts."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    result = [""] * len(prompts)
    for begin in range(0, len(order), batch):
        chosen = order[begin : begin + batch]
        inputs = tokenizer(
            [prompts[index] for index in chosen], return_tensors="pt", padding=True, add_special_tokens=False
        )
        output = model.generate(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=96, do_sample=False
        )
        for index, tokens in zip(chosen, output[:, inputs.input_ids.shape[1] :], strict=True):
            result[index] = tokenizer.decode(tokens, skip_special_tokens=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="Accuracy of the demo model by category.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--split", choices=names.SPLITS, default=names.HELD_OUT)
    parser.add_argument("--count", type=int, default=200, help="conversations")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--weights", choices=("file", "w4"), default="file", help="w4: quantize the layers to 4 bits first"
    )
    parser.add_argument("--show", type=int, default=0, help="print this many random answers")
    parser.add_argument("--wrong", action="store_true", help="print the wrong answers")
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    if arguments.weights == "w4":
        with torch.no_grad():
            for module in model.model.layers.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.copy_(fake_quantize(module.weight))
    stream = itertools.islice(conversations(arguments.split, arguments.seed), arguments.count)
    todo = [case for conversation in stream for case in cases(conversation, tokenizer)]
    given = answers(model, tokenizer, [case.prompt for case in todo], arguments.batch)

    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    verdicts = [right(answer, case.check) for case, answer in zip(todo, given, strict=True)]
    for case, verdict in zip(todo, verdicts, strict=True):
        counts[case.check.category][0] += verdict
        counts[case.check.category][1] += 1
    shown = set(random.Random(0).sample(range(len(todo)), min(arguments.show, len(todo))))
    for index, (case, answer, verdict) in enumerate(zip(todo, given, verdicts, strict=True)):
        if index in shown or (arguments.wrong and not verdict):
            print(f"{'ok ' if verdict else 'BAD'} [{case.check.category}] {case.asked}\n      {answer}")
            if not verdict:
                print(f"    ! {case.expected}")
    print("| category | right | of | accuracy |\n|---|---|---|---|")
    for category, (n_right, n) in sorted(counts.items()):
        print(f"| {category} | {n_right} | {n} | {100 * n_right / n:.1f} % |")
    print(f"| all | {sum(verdicts)} | {len(todo)} | {100 * sum(verdicts) / len(todo):.1f} % |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
