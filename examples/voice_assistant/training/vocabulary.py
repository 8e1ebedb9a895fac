"""The model's tokenizer (byte-level BPE, trained on generated conversations) and the text of a conversation."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import names
from conversations import TOOLS, Conversation, Message, conversations
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL = (PAD, START, END)
ADDED = ("<tool_call>", "</tool_call>")
TEMPLATE = Path(__file__).parent.parent / "model" / "chat_template.jinja"
VOCAB_SIZE = 1536
N_PIECES = 960
"""Of the vocabulary, the tokens without a space at their beginning."""
SPACE = "Ġ"
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{N}| ?[\p{L}_]+| ?[^\s\p{L}\p{N}_]+(?: [^\s\p{L}\p{N}_]+)*|\s+(?!\S)|\s+"
"""What a token never crosses: words (turn_on is one), single digits, and marks, spaces between marks included."""


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


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train(n_conversations: int = 4000) -> Tokenizer:
    """A byte-level BPE tokenizer, its merges learned from training conversations only.

    A word is cut into the same pieces whether a space precedes it or not, since the space joins the first piece last: a
    name that stands after a quotation mark in a tool call is then the one in the system prompt, but for that space.
    """
    cut = pre_tokenizer()
    words: Counter[str] = Counter()
    for one in itertools.islice(conversations(names.TRAIN, seed=1), n_conversations):
        text = render(one.messages, one.tools)
        for special in (*SPECIAL, *ADDED):
            text = text.replace(special, "\n")
        words.update(word for word, _ in cut.pre_tokenize_str(text))
    bare: Counter[str] = Counter()
    for word, count in words.items():
        bare[word.removeprefix(SPACE)] += count
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=N_PIECES,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator((word for word in sorted(bare) if word for _ in range(bare[word])), trainer)
    spaced: Counter[str] = Counter()
    for word, count in sorted(words.items()):
        if word.startswith(SPACE) and len(word) > 1:
            spaced[learner.encode(word[1:]).tokens[0]] += count

    learned = json.loads(learner.to_str())["model"]
    vocab: dict[str, int] = learned["vocab"]
    merges = [tuple(pair) for pair in learned["merges"]]
    for piece, _ in spaced.most_common(VOCAB_SIZE - len(ADDED) - len(vocab)):
        vocab[SPACE + piece] = len(vocab)
        merges.append((SPACE, piece))
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    return tokenizer


def spaced_pairs(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """(id with a space before it, id without) of all pieces that have both."""
    vocab = tokenizer.get_vocab()
    pairs = ((vocab[text], vocab.get(text[1:])) for text in vocab if text.startswith(SPACE) and len(text) > 1)
    return sorted((spaced, bare) for spaced, bare in pairs if bare is not None)


def encode(tokenizer: Tokenizer, conversation: Conversation) -> tuple[list[int], list[str]]:
    """Token ids of a conversation, and for each id who says it (an end mark included): a role, or "" for a header."""
    ids: list[int] = tokenizer.encode(render(conversation.messages, conversation.tools)).ids
    start, end, newline = tokenizer.token_to_id(START), tokenizer.token_to_id(END), tokenizer.encode("\n").ids[0]
    roles = iter(message["role"] for message in conversation.messages)
    speakers, speaker, header = [], "", False
    for token in ids:
        if token == start:
            speaker, header = next(roles), True
        speakers.append("" if header else speaker)
        if header and token == newline:
            header = False
        if token == end:
            speaker = ""
    return ids, speakers


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, and chat_template.jinja if it is not there."""
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
    template = directory / "chat_template.jinja"
    if not template.exists():
        shutil.copyfile(TEMPLATE, template)
