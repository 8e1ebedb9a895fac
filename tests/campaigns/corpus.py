"""Writes seed inputs for the fuzz targets of tokenizer.bin and chat.bin.

python -m tests.campaigns.corpus DIRECTORY      # DIRECTORY/tokenizer, DIRECTORY/template
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from crosscompile.template import compile_template
from crosscompile.tokenizer import compile_tokenizer
from tests.campaigns.template import TOKENS, sources
from tests.charsmap import build

LETTERS = ["a", "b", "e", "Ġ", "1", ".", "'", "s", "Ċ", "Ã", "©"]


def small(byte_level: bool, normalizers: list[dict[str, object]], pre: list[dict[str, object]]) -> bytes:
    """A tokenizer of a few tokens, so that the fuzzer's bytes matter."""
    tokens = LETTERS if byte_level else ["<unk>", "▁", "a", "b", "<0xC3>", "<0xA9>", "<0x41>", "é"]
    merges = [["a", "b"], ["Ġ", "ab"]] if byte_level else [["a", "b"], ["▁", "ab"]]
    vocab = {token: index for index, token in enumerate([*tokens, "ab", "".join(merges[1])])}
    decoder: dict[str, object] = {"type": "ByteLevel"}
    if not byte_level:
        replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        decoder = {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]}
    added = [{"id": 20, "content": "<s>", "special": True, "lstrip": True, "rstrip": True, "normalized": False}]
    added.append({"id": 21, "content": "ba", "special": False, "single_word": True, "normalized": True})
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": not byte_level, "fuse_unk": True}
    late = bool(pre) and byte_level and pre[-1]["type"] != "ByteLevel"  # steps that see what stands for bytes
    model |= {"ignore_merges": byte_level and not late, "unk_token": None if byte_level else "<unk>"}
    document = {
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre},
        "model": model,
        "decoder": decoder,
        "post_processor": {"type": "RobertaProcessing", "cls": ["<s>", 20], "sep": ["<s>", 20]},
    }
    return compile_tokenizer(json.dumps(document).encode(), {})


def small_unigram(fallback: bool, charsmap: bool) -> bytes:
    """A Unigram model of a few pieces, with or without a map of characters before it."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    pieces = [["<unk>", 0.0], *([name, 0.0] for name in bytes_)]
    pieces += [["▁", -2.0], ["a", -3.0], ["b", -3.5], ["ab", -4.0], ["▁ab", -5.0], ["é", -6.0]]
    document = {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": build({"A": "a", "e\u0301": "é", "\t": " "})},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": fallback},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    }
    if not charsmap:
        del document["normalizer"]
    return compile_tokenizer(json.dumps(document).encode(), {})


def tokenizers() -> list[bytes]:
    split = {
        "type": "Split",
        "pattern": {"Regex": r"(?i:'s)|[^1]?[ab]+(?!b)|1{1,3}|(?:ab|\s)+"},
        "behavior": "Isolated",
    }
    merged = {"type": "Split", "pattern": {"String": "e"}, "behavior": "MergedWithNext", "invert": True}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return [
        small(True, [], [split, {"type": "ByteLevel", "add_prefix_space": True, "use_regex": False}]),
        small(True, [{"type": "Strip", "strip_left": True, "strip_right": True}], [merged, {"type": "ByteLevel"}]),
        small(False, [{"type": "Prepend", "prepend": "▁"}, replace], []),
        small(False, [], [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}]),
        small(False, [{"type": "NFC"}], [{"type": "Digits", "individual_digits": False}]),
        small(True, [], [{"type": "ByteLevel", "use_regex": True}, {"type": "Digits", "individual_digits": False}]),
        small_unigram(True, False),
        small_unigram(False, True),
    ]


def main() -> int:
    directory = Path(sys.argv[1])
    text = "<s> ab é1's\n e\u0301 ba ab\xff".encode("latin-1", "replace")
    for folder in ("tokenizer", "template"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(tokenizers()):
        (directory / "tokenizer" / f"seed{index}").write_bytes(bytes([len(text)]) + text + data)
    for name, source in sources().items():
        (directory / "template" / name).write_bytes(compile_template(source, TOKENS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
