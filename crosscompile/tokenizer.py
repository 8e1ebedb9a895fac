"""Compiles a Hugging Face tokenizer.json to tokenizer.bin (runtime_c/FORMAT.md has every byte).

Byte-pair encoding, byte-level (GPT-2, Llama 3, Qwen) or over characters with byte fallback (SentencePiece: Llama 2,
Mistral), Unigram, and the longest token of bytes first (RWKV). Anything the board cannot reproduce exactly is a
TokenizerError that names the construct.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import normalization, unicode
from .errors import TokenizerError, refuse
from .normalization import flatten
from .pattern import NONE, Program
from .pre_tokenization import add_pre_tokenizers

MAGIC = b"ELLMTOK1"
N_SECTIONS = {1: 21, 2: 24, 3: 24}
"""By version of the file: 2 where it has a Unigram model or a character map, 3 where the longest token wins."""
HEADER_BYTES = 64
MOST_TOKENS = 1 << 22
MOST_TOKEN_BYTES = 128
"""Where the longest token wins."""

# Flags of the file.
BYTE_LEVEL, BYTE_FALLBACK, FUSE_UNKNOWN, IGNORE_MERGES, DROP_FIRST, UNIGRAM, LONGEST = 1, 2, 4, 8, 16, 32, 64
# Flags of a token.
EXISTS, SPECIAL, BYTE, WORD = 1, 2, 4, 8
# Flags of an added token.
LSTRIP, RSTRIP, SINGLE_WORD, ADDED_SPECIAL = 1, 2, 4, 8
# How tokens become text.
CONCATENATE, DECODE_BYTES, DECODE_FALLBACK, JOIN_SPACES = range(4)


class Added(NamedTuple):
    id: int
    content: str
    flags: int
    normalized: bool


@dataclass
class Writer:
    """The parts of the file while they are collected."""

    strings: bytearray = field(default_factory=bytearray)
    program: Program = field(default_factory=Program)
    steps: list[list[int]] = field(default_factory=list)
    tables: normalization.Tables = field(default_factory=normalization.Tables)

    def string(self, text: str) -> tuple[int, int]:
        data = text.encode()
        at = self.strings.find(data) if data else 0
        if at < 0:
            at = len(self.strings)
            self.strings += data
        return at, len(data)

    def step(self, kind: int, *arguments: int) -> None:
        self.steps.append([kind, *arguments, *[0] * (7 - len(arguments))])


def byte_characters() -> dict[str, int]:
    """GPT-2's printable stand-in for every byte, inverted."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = byte_characters()


def added_tokens(document: Mapping[str, Any], config: Mapping[str, Any], vocab: Mapping[str, int]) -> list[Added]:
    """Added tokens of tokenizer.json, then those that only tokenizer_config.json has, as transformers adds them."""
    entries = [*document.get("added_tokens", [])]
    known = {entry["content"] for entry in entries}
    for id_text, entry in (config.get("added_tokens_decoder") or {}).items():
        if entry["content"] not in known:
            entries.append({**entry, "id": int(id_text)})
    result: dict[str, Added] = {}
    for entry in entries:
        content = entry["content"]
        if not content:
            continue
        flags = 0
        for name, bit in [("lstrip", 1), ("rstrip", 2), ("single_word", 4), ("special", 8)]:
            flags |= bit * bool(entry.get(name))
        token_id = vocab.get(content, entry["id"])
        if not 0 <= token_id < MOST_TOKENS:
            raise refuse(f"token id {token_id}")
        result[content] = Added(token_id, content, flags, bool(entry.get("normalized", not entry.get("special"))))
    return list(result.values())


@dataclass(frozen=True)
class Decoding:
    """How token texts become text: mode, replacements on each token, then `start` leading `strip` characters go."""

    mode: int
    replacements: tuple[tuple[str, str], ...] = ()
    drop_first: bool = False
    strip: int = 0
    start: int = 0


def decoding_of(node: Mapping[str, Any] | None) -> Decoding:
    steps = flatten(node, "decoders")
    if not steps:
        return Decoding(JOIN_SPACES)
    mode, drop_first, strip, start = CONCATENATE, False, 0, 0
    replacements: list[tuple[str, str]] = []
    fused = False
    for step in steps:
        kind = step["type"]
        if kind == "ByteLevel" and len([s for s in steps if s["type"] != "Fuse"]) == 1:
            mode = DECODE_BYTES
        elif kind == "Replace" and mode == CONCATENATE and not fused and "String" in step["pattern"]:
            if replacements or not step["pattern"]["String"]:
                raise refuse("this order or number of Replace decoders")
            replacements.append((step["pattern"]["String"], step["content"]))
        elif kind == "Metaspace" and mode == CONCATENATE and not fused and not replacements:
            replacements.append((step.get("replacement", "▁"), " "))
            drop_first = step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
        elif kind == "ByteFallback" and mode == CONCATENATE and not fused:
            mode = DECODE_FALLBACK
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and not start and not step.get("stop"):
            strip, start = ord(step["content"]), step["start"]
        else:
            raise refuse(f"decoder {kind} in this place")
    return Decoding(mode, tuple(replacements), drop_first, strip, start)


def post_processing(node: Mapping[str, Any] | None) -> tuple[list[int], list[int]]:
    """Ids that add_special puts before and after the text."""
    prefix: list[int] = []
    suffix: list[int] = []
    for step in flatten(node, "processors"):
        kind = step["type"]
        if kind == "TemplateProcessing":
            before: list[int] = []
            after: list[int] = []
            seen = 0
            for part in step["single"]:
                if "Sequence" in part:
                    seen += 1
                else:
                    (after if seen else before).extend(step["special_tokens"][part["SpecialToken"]["id"]]["ids"])
            if seen != 1:
                raise refuse("a TemplateProcessing without exactly one sequence")
            prefix, suffix = before + prefix, suffix + after
        elif kind in ("BertProcessing", "RobertaProcessing"):
            prefix, suffix = [step["cls"][1], *prefix], [*suffix, step["sep"][1]]
        elif kind != "ByteLevel":
            raise refuse(f"post-processor {kind}")
    return prefix, suffix


def merge_table(model: Mapping[str, Any], vocab: Mapping[str, int], n_tokens: int) -> tuple[list[int], list[int]]:
    """Merges by left token: the first entry of each row, then (right, rank, merged) triples, right ascending."""
    rows: dict[int, dict[int, tuple[int, int]]] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        try:
            pair, merged = (vocab[left], vocab[right]), vocab[left + right]
        except KeyError as missing:
            raise TokenizerError(
                f"tokenizer.json: merge {rank} ({left!r} {right!r}) needs the token {missing} that is not in the "
                "vocabulary. The file is damaged; download it again."
            ) from None
        rows.setdefault(pair[0], {})[pair[1]] = (rank, merged)
    starts, entries = [0], []
    for left_id in range(n_tokens):
        for right_id, (rank, merged) in sorted(rows.get(left_id, {}).items()):
            entries += [right_id, rank, merged]
        starts.append(len(entries) // 3)
    return starts, entries


def word_table(texts: Mapping[int, bytes]) -> list[int]:
    """Open-addressing hash table (FNV-1a, linear probing, at most half full) of the ids of whole words."""
    size = 2
    while size < 2 * len(texts):
        size *= 2
    table = [NONE] * size
    for token_id, text in texts.items():
        value = 0x811C9DC5
        for byte in text:
            value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
        slot = value & (size - 1)
        while table[slot] != NONE:
            slot = (slot + 1) & (size - 1)
        table[slot] = token_id
    return table


def added_section(writer: Writer, added: Iterable[Added], text_of: Callable[[str], str]) -> list[int]:
    """(text offset, bytes, id, flags) in ascending order of text."""
    result: list[int] = []
    ordered = sorted((text_of(token.content).encode(), token) for token in added)
    for before, (text, token) in zip([(b"", None), *ordered], ordered, strict=False):
        if not text or text == before[0]:
            raise refuse(f"the added token {token.content!r}, which is empty or a duplicate after normalization,")
        result += [*writer.string(text.decode()), token.id, token.flags]
    return result


def words(values: Iterable[int]) -> bytes:
    listed = list(values)
    return struct.pack(f"<{len(listed)}I", *listed)


def class_sections(program: Program) -> tuple[list[int], list[int]]:
    """Per class: first range, count, 128-bit ASCII map; then the ranges."""
    entries: list[int] = []
    ranges: list[int] = []
    for members in program.classes:
        ascii_map = sum(1 << p for first, last in members for p in range(first, min(last, 127) + 1))
        entries += [len(ranges) // 2, len(members), *(ascii_map >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96))]
        ranges += [value for pair in members for value in pair]
    return entries, ranges


def compile_tokenizer(tokenizer_json: bytes, tokenizer_config: Mapping[str, Any]) -> bytes:
    """Compile tokenizer.json (and what tokenizer_config.json adds to it) to the bytes of tokenizer.bin.

    Raises TokenizerError that names the first construct the board cannot reproduce.
    """
    try:
        document = json.loads(tokenizer_json)
        return assemble(document, tokenizer_config)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise TokenizerError(
            f"tokenizer.json: malformed ({type(error).__name__}: {error}). Download the file again."
        ) from error


def check_model(model: Mapping[str, Any]) -> None:
    if model.get("type") == "Unigram":
        return
    if model.get("type") == "WordPiece":
        if model.get("continuing_subword_prefix") or model.get("max_input_chars_per_word", 100) < 1 << 30:
            raise refuse("a WordPiece model with a continuing_subword_prefix, or a short max_input_chars_per_word,")
        return
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise refuse(f"model type {model.get('type')}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise refuse(f"BPE with {name} {model[name]!r}")


@dataclass(frozen=True)
class Unigram:
    """A model of scored pieces. vocab: of equal pieces the last one's id, as `tokenizers` looks them up."""

    pieces: tuple[tuple[str, float], ...]
    unknown: str

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> Unigram:
        pieces = tuple((str(piece), float(score)) for piece, score in model["vocab"])
        unknown = model.get("unk_id")
        if not isinstance(unknown, int) or not 0 <= unknown < len(pieces):
            raise refuse("a Unigram model without unk_id")
        if not all(piece for piece, _ in pieces) or not all(abs(score) < 1e30 for _, score in pieces):
            raise refuse("a Unigram model with an empty piece, or a score that is not finite,")
        made = cls(pieces, pieces[unknown][0])
        if made.vocab[made.unknown] != unknown:
            raise refuse(f"a Unigram model that has {made.unknown!r} twice")
        return made

    @property
    def vocab(self) -> dict[str, int]:
        return {piece: token_id for token_id, (piece, _) in enumerate(self.pieces)}

    @property
    def unknown_score(self) -> float:
        return min(score for _, score in self.pieces) - UNKNOWN_PENALTY

    def section(self, writer: Writer) -> bytes:
        """(text offset, bytes, id, 0, score) in ascending order of text."""
        rows, base, texts = [], len(writer.strings), bytearray()
        for text, token_id in sorted((piece.encode(), token_id) for piece, token_id in self.vocab.items()):
            rows.append(struct.pack("<4Id", base + len(texts), len(text), token_id, 0, self.pieces[token_id][1]))
            texts += text
        writer.strings += texts
        return b"".join(rows)


UNKNOWN_PENALTY = 10.0
"""How much worse than the worst piece an unknown character is."""


def assemble(document: Mapping[str, Any], config: Mapping[str, Any]) -> bytes:
    model = document["model"]
    check_model(model)
    unigram = Unigram.of(model) if model.get("type") == "Unigram" else None
    longest = model.get("type") == "WordPiece"
    vocab: dict[str, int] = model["vocab"] if unigram is None else unigram.vocab
    added = added_tokens(document, config, vocab)
    ids = [*vocab.values(), *(token.id for token in added), *(range(len(unigram.pieces)) if unigram else ())]
    if not ids or min(ids) < 0 or max(ids) >= MOST_TOKENS:
        raise refuse("an empty vocabulary or a token id outside [0, 4194304)")
    n_tokens = max(ids) + 1

    writer = Writer()
    normalizers = [normalization.add(writer, step) for step in flatten(document.get("normalizer"), "normalizers")]
    n_normalizers = len(writer.steps)
    byte_level, stand_ins = add_pre_tokenizers(writer, document.get("pre_tokenizer"))
    decoding = decoding_of(document.get("decoder"))
    if byte_level != (decoding.mode == DECODE_BYTES):
        raise refuse("a ByteLevel pre-tokenizer without ByteLevel decoder, or the reverse,")
    byte_fallback = bool(model.get("byte_fallback"))
    if byte_level and unigram is not None:
        raise refuse("a Unigram model with ByteLevel")
    if byte_level and byte_fallback:
        raise refuse("byte_fallback with ByteLevel")
    if longest and (not byte_level or stand_ins or not all(char in vocab for char in BYTE_OF)):
        raise refuse("a WordPiece model without ByteLevel, or without a token for each byte,")
    whole_words = bool(model.get("ignore_merges")) or longest
    if stand_ins and model.get("ignore_merges"):
        raise refuse("ignore_merges with a pre-tokenizer after ByteLevel")

    def normalize(text: str) -> str:
        for step in normalizers:
            text = step(text)
        return text

    # Later normalized forms of added tokens are what text is searched for, and what some decoders see.
    raw_added = added_section(writer, (t for t in added if not t.normalized), str)
    normalized_added = added_section(writer, (t for t in added if t.normalized), normalize)

    texts, flags = [b""] * n_tokens, [0] * n_tokens
    reachable: dict[int, bytes] = {}
    specials = {token.content for token in added if token.flags & ADDED_SPECIAL}
    shown = {token_id: (content, True) for content, token_id in vocab.items()}
    if unigram is not None:
        shown = {token_id: (content, True) for token_id, (content, _) in enumerate(unigram.pieces)}
    shown.update({t.id: (normalize(t.content) if t.normalized else t.content, t.content in vocab) for t in added})
    for token_id, (content, in_vocab) in shown.items():
        flags[token_id] = EXISTS | SPECIAL * (content in specials)
        text = content.encode()
        if byte_level and all(char in BYTE_OF for char in content):
            text = bytes(BYTE_OF[char] for char in content)
        if decoding.mode == DECODE_FALLBACK:
            replaced = content
            for old, new in decoding.replacements:
                replaced = replaced.replace(old, new)
            if len(replaced.encode()) == 6 and replaced.startswith("<0x") and replaced.endswith(">"):
                digits = replaced[3:5].removeprefix("+") if replaced[3] == "+" else replaced[3:5]
                if digits and all(digit in "0123456789abcdefABCDEF" for digit in digits):
                    flags[token_id] |= BYTE
                    text = bytes([int(digits, 16)])
        if in_vocab and whole_words and not (longest and content in specials):
            word = next((c for c, i in [(content, vocab.get(content))] if i == token_id), None)
            if word is not None and (not byte_level or all(char in BYTE_OF for char in word)):
                if flags[token_id] & BYTE:
                    raise refuse("ignore_merges with byte fallback")
                flags[token_id] |= WORD
                reachable[token_id] = text
        texts[token_id] = text

    if longest and max(map(len, reachable.values())) > MOST_TOKEN_BYTES:
        raise refuse(f"a WordPiece token of more than {MOST_TOKEN_BYTES} bytes")
    unknown = unigram.unknown if unigram is not None else None if longest else model.get("unk_token")
    if unknown is not None and unknown not in vocab:
        raise refuse(f"unk_token {unknown!r} that is not in the vocabulary,")
    if byte_level:
        byte_ids = [NONE] * 256
        for char, byte in BYTE_OF.items():
            byte_ids[byte] = vocab.get(char, NONE)
    else:
        byte_ids = [vocab.get(f"<0x{byte:02X}>", NONE) for byte in range(256)]
    chars: list[int] = []
    if (stand_ins or not byte_level) and unigram is None:
        chars = [v for char, i in sorted(vocab.items()) if len(char) == 1 for v in (ord(char), i)]
    prefix, suffix = post_processing(document.get("post_processor"))
    merge_rows, merges = merge_table(model if "merges" in model else {"merges": []}, vocab, n_tokens)
    pieces = b"" if unigram is None else unigram.section(writer)
    ends = [0]
    for text in texts:
        ends.append(ends[-1] + len(text))
    replacements = [v for old, new in decoding.replacements for v in (*writer.string(old), *writer.string(new))]
    space, word_class = unicode.named("\\s"), unicode.named("word")
    assert space is not None
    assert word_class is not None
    space_index, word_index = writer.program.class_of(space), writer.program.class_of(word_class)
    classes, ranges = class_sections(writer.program)
    file_flags = (
        BYTE_LEVEL * (byte_level and not stand_ins)
        | BYTE_FALLBACK * byte_fallback
        | FUSE_UNKNOWN * bool(model.get("fuse_unk"))
        | IGNORE_MERGES * bool(model.get("ignore_merges"))
        | DROP_FIRST * decoding.drop_first
        | UNIGRAM * (unigram is not None)
        | LONGEST * longest
    )
    version = 3 if longest else 1 if unigram is None and not writer.tables.graphemes else 2
    header = [
        *(version, n_tokens, file_flags, NONE if unknown is None else vocab[unknown], n_normalizers, len(prefix)),
        *(decoding.mode, decoding.strip, decoding.start, space_index, word_index),
        *((0,) if unigram is None else struct.unpack("<2I", struct.pack("<d", unigram.unknown_score))),
    ]
    tables = writer.tables
    sections = [
        *(words(ends), b"".join(texts), bytes(flags), words(merge_rows), words(merges), words(byte_ids), words(chars)),
        *(
            words(word_table(reachable)) if whole_words else b"",
            words(raw_added),
            words(normalized_added),
        ),
        *(words(v for step in writer.steps for v in step), words(writer.program.words), words(classes), words(ranges)),
        *(words(tables.maps), words(tables.values), words(tables.marks), words(tables.compose), bytes(writer.strings)),
        *(words(prefix + suffix), words(replacements)),
        *((pieces, words(tables.charsmap), words(tables.graphemes)) if version > 1 else ()),
    ]
    return layout(header, sections)


def layout(header: list[int], sections: list[bytes]) -> bytes:
    """Magic, file size, header words, section table, then the sections, each at a multiple of 8."""
    assert len(sections) == N_SECTIONS[header[0]]
    offset = (HEADER_BYTES + 8 * len(sections) + 7) & ~7
    table, body = b"", b""
    chunks = []
    for section in sections:
        table += struct.pack("<II", offset, len(section))
        padded = section + bytes(-len(section) % 8)
        chunks.append(padded)
        offset += len(padded)
    if offset >= 1 << 31:
        raise refuse("a tokenizer of more than 2 GB")
    body = b"".join(chunks)
    start = MAGIC + struct.pack("<I13I", offset, *header, *[0] * (13 - len(header)))
    table += bytes(-(len(start) + len(table)) % 8)
    return start + table + body
