"""From a GGUF file's tokenizer keys to tokenizer.json, special tokens and the chat template.

A file names its pre-tokenizer; the expressions are those of the original tokenizer.json files, as llama.cpp quotes
them. A file may also hold the whole tokenizer.json (tokenizer.huggingface.json), or one may lie beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.errors import CheckpointError, TokenizerError
from crosscompile.gguf_file import TEXT_CAP, Value

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""tokenizer.ggml.token_type."""

WHOLE = "tokenizer.huggingface.json"
_ENDS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _ENDS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+ENDS"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*ENDS"
    r"|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _CASED.replace("ENDS", "").replace("NUMBER", r"\p{N}")
_GPT4O = _CASED.replace("ENDS", _ENDS + "?").replace("NUMBER", r"\p{N}{1,3}")


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(expression: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": False}


_GPT2 = [_byte_level(True)]
_DIGITS = [{"type": "Digits", "individual_digits": True}, *_GPT2]
_FALCON = [
    {"type": "Punctuation", "behavior": "Contiguous"},
    _byte_level(True),
    {"type": "Digits", "individual_digits": False},
    _split("[0-9][0-9][0-9]"),
]


@dataclass(frozen=True)
class _Named:
    """A pre-tokenizer. steps: of tokenizer.json; whole_words: ignore_merges; begins: add_bos_token by default."""

    steps: list[dict[str, Any]]
    normalizer: dict[str, Any] | None = None
    whole_words: bool = False
    begins: bool = False


_NFC = {"type": "NFC"}
PRE_TOKENIZERS: dict[str, _Named] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion", "exaone4"), _Named(_GPT2)),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"), _Named(_DIGITS)
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3"),
        _Named([_split(_LLAMA3), _byte_level(False)], whole_words=True, begins=True),
    ),
    **dict.fromkeys(("smaug-bpe", "dbrx", "glm4"), _Named([_split(_LLAMA3), _byte_level(False)])),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _Named([_split(_QWEN2), _byte_level(False)], _NFC)),
    "stablelm2": _Named([_split(_QWEN2), _byte_level(False)]),
    "tekken": _Named([_split(_TEKKEN), _byte_level(False)], whole_words=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4"), _Named([_split(_GPT4O), _byte_level(False)])),
    "falcon": _Named(_FALCON),
}
"""tokenizer.ggml.pre -> pre-tokenizer."""


ENDS = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>",
    "<|end_of_text|>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
)  # fmt: skip
"""Control tokens that end an answer whether a key says so or not, as in llama.cpp: there is room for one eos."""


@dataclass(frozen=True)
class Texts:
    """All that a Checkpoint has beside config.json and tensors. files: read besides the GGUF file itself."""

    tokenizer_json: bytes | None
    tokenizer_config: dict[str, Any]
    special_tokens: dict[str, str]
    chat_template: str | None
    generation_config: dict[str, Any]
    files: tuple[Path, ...] = ()


class _Vocabulary:
    """The tokenizer's keys, checked."""

    def __init__(self, file: Path, keys: Mapping[str, Value], vocab: int) -> None:
        self.file, self.keys = file, keys
        tokens = self.get("tokens")
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise self.fail("tokens", "must be a list of texts")
        if len(tokens) > vocab:
            raise self.fail("tokens", f"has {len(tokens)} texts, the embedding {vocab} rows")
        self.tokens: list[str] = tokens
        types = self.get("token_type")
        self.types = [NORMAL] * len(tokens) if types is None else self.numbers("token_type", np.integer)

    def get(self, name: str) -> Value | None:
        return self.keys.get(f"tokenizer.ggml.{name}")

    def fail(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: tokenizer.ggml.{name} {why}; convert the model to GGUF again")

    def numbers(self, name: str, kind: type) -> list[Any]:
        """An array with one number per token."""
        found = self.get(name)
        if not isinstance(found, np.ndarray) or not np.issubdtype(found.dtype, kind) or len(found) != len(self.tokens):
            raise self.fail(name, f"must have a number for each of the {len(self.tokens)} tokens")
        return list(found.tolist())

    def flag(self, name: str, default: bool) -> bool:
        found = self.get(name)
        if found is not None and not isinstance(found, bool):
            raise self.fail(name, f"must be true or false, not {found!r}")
        return default if found is None else found

    def id(self, name: str) -> int | None:
        """A token's id; None where the file has none."""
        found = self.get(f"{name}_token_id")
        if found is None or (isinstance(found, int) and found in (0xFFFFFFFF, -1)):
            return None
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < len(self.tokens):
            raise self.fail(f"{name}_token_id", f"{found!r} is not the id of one of {len(self.tokens)} tokens")
        return found


def texts_of(file: Path, keys: Mapping[str, Value], vocab: int) -> Texts:
    """Tokenizer, special tokens, template and stop ids of a file. vocab: rows of the embedding.

    Raises CheckpointError for malformed keys, TokenizerError for a tokenizer that is not known.
    """
    beside = file.with_suffix(".tokenizer.json")
    whole = keys.get(WHOLE)
    template = keys.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{file}: tokenizer.chat_template must be a text; convert the model to GGUF again")
    if "tokenizer.ggml.tokens" not in keys and not isinstance(whole, str) and not beside.is_file():
        return Texts(None, {}, {}, template, {})
    found = _Vocabulary(file, keys, vocab)
    special = {f"{name}_token": found.tokens[i] for name, i in _special(found).items()}
    stop = [i for name in ("eos", "eot", "eom") if (i := found.id(name)) is not None]
    stop += [i for i, text in enumerate(found.tokens) if found.types[i] == CONTROL and text in ENDS]
    generation = {"eos_token_id": sorted(set(stop))} if stop else {}
    if beside.is_file():
        document: bytes | None = _read(beside)
    elif isinstance(whole, str):
        document = whole.encode()
    else:
        document = json.dumps(_document(found), ensure_ascii=False).encode()
    files = (beside,) if beside.is_file() else ()
    return Texts(document, dict(special), special, template, generation, files)


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > TEXT_CAP:
            raise CheckpointError(f"{file} is too large for a tokenizer.json; put the model's own there")
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error


def _special(found: _Vocabulary) -> dict[str, int]:
    kinds = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}  # as GGUF spells it
    return {name: i for name, key in kinds.items() if (i := found.id(key)) is not None}


def _document(found: _Vocabulary) -> dict[str, Any]:
    """tokenizer.json as `tokenizers` would read it."""
    kind = found.get("model")
    if kind == "gpt2":
        made = _byte_pairs(found)
    elif kind == "llama":
        made = _sentencepiece(found)
    else:
        raise _unknown(found, f"tokenizer.ggml.model {kind!r}")
    added = [
        {
            "id": i,
            "content": found.tokens[i],
            "special": type_ == CONTROL,
            "normalized": False,
            **dict.fromkeys(("single_word", "lstrip", "rstrip"), False),
        }
        for i, type_ in enumerate(found.types)
        if type_ in (CONTROL, USER_DEFINED) and found.tokens[i]
    ]
    return {"version": "1.0", "added_tokens": added, **made}


def _unknown(found: _Vocabulary, what: str) -> TokenizerError:
    beside = found.file.with_suffix(".tokenizer.json")
    return TokenizerError(
        f"{found.file}: {what} is not known, so that text would be cut up differently; put the original model's "
        f"tokenizer.json beside the file, as {beside.name}"
    )


def _byte_pairs(found: _Vocabulary) -> dict[str, Any]:
    name = found.get("pre")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise _unknown(found, f"tokenizer.ggml.pre {name!r}")
    named = PRE_TOKENIZERS[name]
    merges = found.get("merges")
    if not isinstance(merges, list) or not all(isinstance(merge, str) and " " in merge[1:-1] for merge in merges):
        raise found.fail("merges", "must be a list of pairs, separated by a space")
    pairs = []
    for merge in merges:
        cut = merge.index(" ", 1)  # a token may begin with a space
        pairs.append([merge[:cut], merge[cut + 1 :]])
    vocab = _vocab(found, (NORMAL, BYTE, CONTROL, USER_DEFINED))
    steps = [step if step != _GPT2[0] else dict(step) for step in named.steps]
    return {
        "normalizer": named.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": _ends(found, named.begins),
        "decoder": _byte_level(True),
        "model": {
            "type": "BPE",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": named.whole_words,
            "vocab": vocab,
            "merges": pairs,
        },
    }


def _vocab(found: _Vocabulary, kinds: tuple[int, ...]) -> dict[str, int]:
    """Text -> id. Texts that appear twice keep the first."""
    vocab: dict[str, int] = {}
    for i, (text, kind) in enumerate(zip(found.tokens, found.types, strict=True)):
        if kind in kinds:
            vocab.setdefault(text, i)
    return vocab


def _ends(found: _Vocabulary, begins: bool) -> dict[str, Any] | None:
    """What is put before and after a text."""
    before = found.id("bos") if found.flag("add_bos_token", begins) else None
    after = found.id("eos") if found.flag("add_eos_token", False) else None
    if before is None and after is None:
        return None
    parts: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {}
    for i, at in ((before, 0), (after, 2)):
        if i is not None:
            text = found.tokens[i]
            tokens[text] = {"id": text, "ids": [i], "tokens": [text]}
            parts.insert(at, {"SpecialToken": {"id": text, "type_id": 0}})
    return {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": tokens}


def _sentencepiece(found: _Vocabulary) -> dict[str, Any]:
    """Pairs merge in the order of the scores of what they give, as transformers has it from a tokenizer.model."""
    if found.get("precompiled_charsmap") is not None:
        raise _unknown(found, "tokenizer.ggml.precompiled_charsmap")
    vocab = _vocab(found, (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE))
    scores = found.numbers("scores", np.floating)
    if not np.isfinite(scores).all():
        raise found.fail("scores", "must be finite")
    unknown = next((i for i, kind in enumerate(found.types) if kind == UNKNOWN), found.id("unknown"))
    prefix = found.flag("add_space_prefix", True)
    normalizers: list[dict[str, Any]] = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": _ends(found, True),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": None if unknown is None else found.tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": BYTE in found.types,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(found, vocab, scores),
        },
    }


def _merges(found: _Vocabulary, vocab: Mapping[str, int], scores: list[float]) -> list[list[str]]:
    """Every way to make a normal piece of two others; best score first, ties by the lengths of the halves."""
    parts = {text for text, i in vocab.items() if found.types[i] == NORMAL}
    ranked = []
    for text in parts:
        i = vocab[text]
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in parts and right in parts:
                ranked.append((-scores[i], -len(left), -len(right), i, vocab[left], vocab[right], left, right))
    return [[left, right] for *_, left, right in sorted(ranked)]
