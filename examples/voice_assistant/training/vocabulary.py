"""The model's tokenizer (byte-level BPE, trained on generated conversations) and the text of a conversation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import names
from conversations import TOOLS, Conversation, Message, conversations
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL = (PAD, START, END)
ADDED = ("<tool_call>", "</tool_call>")
VOCAB_SIZE = 1536


def render(messages: Iterable[Message], tools: bool, generation_prompt: bool = False) -> str:
    """The text that chat_template.jinja makes of messages that begin with a system prompt; a test compares the two."""
    parts: list[str] = []
    for message in messages:
        content = str(message["content"])
        if message["role"] == "system" and tools:
            signatures = ", ".join(
                f"{tool['function']['name']}({', '.join(tool['function']['parameters']['properties'])})"
                for tool in TOOLS
            )
            content += f"\nTools: {signatures}"
        calls = [json.dumps(call["function"]) for call in message.get("tool_calls", ())]
        content += "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
        parts.append(f"{START}{message['role']}\n{content}{END}\n")
    return "".join(parts) + (f"{START}assistant\n" if generation_prompt else "")


def train(n_conversations: int = 6000) -> Tokenizer:
    """A tokenizer in the manner of GPT-2, its merges learned from training conversations only."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(ADDED),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stream = itertools.islice(conversations(names.TRAIN, seed=1), n_conversations)
    tokenizer.train_from_iterator((render(one.messages, one.tools) for one in stream), trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    return tokenizer


def encode(tokenizer: Tokenizer, conversation: Conversation) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and for each id whether it is the assistant's (its end mark included)."""
    ids: list[int] = tokenizer.encode(render(conversation.messages, conversation.tools)).ids
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    header = tokenizer.encode("assistant\n").ids
    mask, inside, skip = [], False, 0
    for position, token in enumerate(ids):
        if token == start and ids[position + 1 : position + 1 + len(header)] == header:
            inside, skip = True, 1 + len(header)
        mask.append(inside and skip == 0)
        skip = max(0, skip - 1)
        if token == end:
            inside = False
    return ids, mask


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": None,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
