"""The board's tokenizer against Hugging Face `tokenizers`: a sample of tests.campaigns.tokenizer, and edges."""

from __future__ import annotations

import json
import random
import struct
import time
from typing import Any

import pytest
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Theirs

from crosscompile.errors import TokenizerError
from crosscompile.normalization import charsmap_images
from crosscompile.tokenizer import compile_tokenizer
from tests.campaigns import tokenizer as campaign
from tests.campaigns.corpus import tokenizers as small_files
from tests.textlib import TEXT_INVALID, TextError, Tokenizer

TOKENIZER_INVALID, BUNDLE_VERSION = 30, 23


def built(kind: str) -> tuple[Theirs, Tokenizer]:
    theirs = campaign.KINDS[kind]()
    return theirs, Tokenizer(compile_tokenizer(theirs.to_str().encode(), {}))


@pytest.mark.parametrize("kind", sorted(campaign.KINDS))
def test_equals_hugging_face(kind: str) -> None:
    count, found = campaign.compare(kind, 1000, seed=2)
    assert not found, f"string {count}: {found[0]}"


@pytest.mark.parametrize("kind", ["llama3", "llama2"])
def test_long_words_take_no_quadratic_time(kind: str) -> None:
    """100 KB without a place to split; a quadratic merge loop would take minutes."""
    theirs, ours = built(kind)
    rng = random.Random(5)
    for text in ("a" * 100_000, "".join(rng.choice("abcdefgh") for _ in range(100_000)), " " * 100_000, "é" * 50_000):
        started = time.monotonic()
        got = ours.encode(text)
        assert time.monotonic() - started < 20
        assert got == theirs.encode(text, add_special_tokens=False).ids


def test_streaming_gives_whole_characters_as_soon_as_they_are_certain() -> None:
    _, ours = built("gpt2")
    tokens = ours.encode("a\U00013080b")  # a character that no training text had: several tokens
    pieces = ours.stream(tokens)
    assert len(tokens) > 3
    assert pieces == ["a", *[""] * (len(tokens) - 3), "\U00013080", "b", ""]
    assert ours.stream(tokens[:2]) == ["a", "", "\ufffd"]


def test_a_long_run_of_byte_tokens_streams() -> None:
    theirs, ours = built("llama2")
    ids = [theirs.token_to_id(f"<0x{byte:02X}>") for byte in ("日" * 300).encode()]
    assert ours.decode(ids) == "日" * 300 == theirs.decode(ids)
    assert "".join(ours.stream(ids)) == "日" * 300
    assert ours.decode(ids[:-1]) == theirs.decode(ids[:-1])


def test_invalid_utf8_is_refused() -> None:
    _, ours = built("qwen2")
    for data in (b"a\xffb", b"\xe2\x82", b"\xf0\x9f\x91x", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"):
        with pytest.raises(TextError) as caught:
            ours.encode(data)
        assert caught.value.status == TEXT_INVALID


def pre_tokenized(regex: str, behavior: str, invert: bool, text: str) -> tuple[list[int], list[int]]:
    """Ids from both sides where every piece shows: without merges a space token marks each start."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {char: index for index, char in enumerate(sorted(alphabet))}
    theirs = Theirs(models.BPE(vocab=vocab, merges=[]))
    steps = [pre_tokenizers.Split(Regex(regex), behavior, invert), pre_tokenizers.ByteLevel(True, use_regex=False)]
    theirs.pre_tokenizer = pre_tokenizers.Sequence(steps)
    theirs.decoder = decoders.ByteLevel()
    ours = Tokenizer(compile_tokenizer(theirs.to_str().encode(), {}))
    return theirs.encode(text).ids, ours.encode(text)


SPLITS = [r"a|bc", r"[^ab]+(?=c)", r"(?:ab|c){2,3}", r"\p{Lu}\p{Ll}*+", r"(?i:[sk]|re)+", r"\d{2}|\s?x", r"[a-c\-\]]"]


@pytest.mark.parametrize("behavior", ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"])
@pytest.mark.parametrize("invert", [False, True])
def test_split_behaviors(behavior: str, invert: bool) -> None:
    rng = random.Random(3)
    for regex in SPLITS:
        for _ in range(40):
            text = "".join(rng.choice("abcABCsSkKſKrRe x-] 12\n٣") for _ in range(rng.randint(0, 14)))
            want, got = pre_tokenized(regex, behavior, invert, text)
            assert got == want, (regex, text)


REFUSED: list[tuple[str, Any, str]] = [
    ("model", {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a"}, "WordPiece"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}, "precompiled_charsmap"),
    ("pre_tokenizer", {"type": "UnicodeScripts"}, "UnicodeScripts"),
    ("decoder", {"type": "WordPiece", "prefix": "##"}, "WordPiece"),
    (
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": r"(?<=a)b"}, "behavior": "Isolated", "invert": False},
        "(?<=",
    ),
    (
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": r"\p{Han}+"}, "behavior": "Isolated", "invert": False},
        "Han",
    ),
    ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "a*?"}, "behavior": "Isolated", "invert": False}, "lazy"),
]


@pytest.mark.parametrize(("part", "value", "named"), REFUSED)
def test_unknown_constructs_are_named(part: str, value: Any, named: str) -> None:
    document = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, part: value}
    with pytest.raises(TokenizerError, match=r"tokenizer\.json") as caught:
        compile_tokenizer(json.dumps(document).encode(), {})
    assert named in str(caught.value)


def test_damaged_json_is_a_tokenizer_error() -> None:
    for data in (b"", b"{", b"[]", b'{"model": 3}', b'{"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}}'):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            compile_tokenizer(data, {})


def test_damaged_character_maps_are_refused() -> None:
    again = [byte | (byte ^ 256) << 10 for byte in range(256)]
    endless = struct.pack("<513I", 2048, *again, *[byte | byte << 10 for byte in range(256)]) + b"x\0"
    for blob in (b"", b"\0\0\0\0", b"\x08\0\0\0" + bytes(4), endless):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: the precompiled_charsmap is damaged"):
            charsmap_images(blob)


def test_damaged_files_are_refused_or_harmless() -> None:
    """Flipped bytes give TOKENIZER_INVALID or a tokenizer that still answers."""
    rng = random.Random(11)
    for data in small_files():
        for _ in range(150):
            damaged = bytearray(data)
            damaged[rng.randrange(len(damaged) if rng.random() < 0.3 else 400)] ^= 1 << rng.randrange(8)
            status = 0
            try:
                Tokenizer(bytes(damaged)).close()
            except TextError as error:
                status = error.status
            assert status in (0, TOKENIZER_INVALID, BUNDLE_VERSION)
        with pytest.raises(TextError):
            Tokenizer(data[: len(data) // 2])
