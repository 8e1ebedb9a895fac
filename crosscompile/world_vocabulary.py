"""RWKV's World vocabulary, rwkv_vocab_v20230424.txt, as a tokenizer.json that says the same.

A line is an id, the token as Python writes a string or bytes, and its length in bytes. Text is cut from left to right,
each time by the longest token: what Hugging Face calls WordPiece, here over bytes, without a prefix for what follows.
Source: the authors' rwkv_tokenizer.py.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosscompile.errors import CheckpointError
from crosscompile.tokenizer import BYTE_OF

END_OF_TEXT = "<|rwkv_tokenizer_end_of_text|>"
"""Id 0, which the file does not have."""
_LINE = re.compile(r"(\d{1,9}) (b?(?:'.*'|\".*\")) (\d{1,9})", re.DOTALL)


def world_tokenizer(file: Path) -> bytes:
    """tokenizer.json of a vocabulary. CheckpointError names the line that is not as it should be."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read as UTF-8 ({error}); download it again") from error
    vocab: dict[bytes, int] = {}
    ids = {0}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        match = _LINE.fullmatch(line)
        try:
            value: Any = ast.literal_eval(match[2]) if match else None
            token = value.encode() if isinstance(value, str) else value
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            token = None
        if match is None or not isinstance(token, bytes) or len(token) != int(match[3]) or not token:
            raise CheckpointError(f"{file}: line {number} is not an id, a token and its bytes; download it again")
        if token in vocab or int(match[1]) in ids:
            raise CheckpointError(f"{file}: line {number} has a token or an id for the second time; download it again")
        vocab[token] = int(match[1])
        ids.add(vocab[token])
    missing = [byte for byte in range(256) if bytes([byte]) not in vocab]
    if missing:
        raise CheckpointError(f"{file} has no token for byte {missing[0]}; download it again")
    return json.dumps(world_document(vocab)).encode()


def world_document(vocab: Mapping[bytes, int]) -> dict[str, Any]:
    """tokenizer.json of tokens by id, all bytes among them."""
    stand_in = {byte: char for char, byte in BYTE_OF.items()}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": END_OF_TEXT, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "WordPiece",
            "unk_token": stand_in[0],
            "continuing_subword_prefix": "",
            "max_input_chars_per_word": (1 << 31) - 1,
            "vocab": {END_OF_TEXT: 0}
            | {"".join(stand_in[byte] for byte in token): token_id for token, token_id in vocab.items()},
        },
    }
