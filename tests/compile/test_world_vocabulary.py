"""RWKV's vocabulary file: read as its authors read it, and what is damaged named by its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from crosscompile import checkpoint
from crosscompile.errors import CheckpointError, TokenizerError
from crosscompile.tokenizer import compile_tokenizer
from crosscompile.world_vocabulary import END_OF_TEXT, world_tokenizer
from tests.textlib import Tokenizer as Ours

TOKENS = [bytes([byte]) for byte in range(256)] + [
    b"\n\n",
    b"the",
    b"then",
    b" the",
    b"\xe4\xb8",
    "世".encode(),
    b"'\"",
]


def line(token_id: int, token: bytes) -> str:
    """As the authors write it: a string where the token is one, else bytes."""
    try:
        shown = repr(token.decode())
    except UnicodeDecodeError:
        shown = repr(token)
    return f"{token_id} {shown} {len(token)}"


def written(folder: Path, lines: list[str]) -> Path:
    file = folder / "rwkv_vocab_v20230424.txt"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def greedy(text: str) -> list[int]:
    """From left to right, each time the longest token."""
    data, ids = text.encode(), []
    while data:
        token = max((token for token in TOKENS if data.startswith(token)), key=len)
        ids.append(TOKENS.index(token) + 1)
        data = data[len(token) :]
    return ids


TEXTS = ["", "then the\n\n\n", " thethen", "世界 丗", "'\"''\"", "naïve \x00\x7f", "x" * 300]


def test_text_is_cut_by_the_longest_token(tmp_path: Path) -> None:
    document = world_tokenizer(written(tmp_path, [line(i + 1, token) for i, token in enumerate(TOKENS)]))
    theirs, ours = Tokenizer.from_str(document.decode()), Ours(compile_tokenizer(document, {}))
    for text in TEXTS:
        assert ours.encode(text, False) == theirs.encode(text).ids == greedy(text)
        assert ours.decode(greedy(text), False) == text
    assert ours.encode(f"the{END_OF_TEXT}then", False) == [258, 0, 259]
    assert 0 not in ours.encode(END_OF_TEXT, False, parse_special=False)


def test_a_checkpoint_may_have_it_in_place_of_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["RWKV7ForCausalLM"]}')
    header = b"{}"
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    file = written(tmp_path, [line(i + 1, token) for i, token in enumerate(TOKENS)])
    source = checkpoint.load(tmp_path)
    assert source.tokenizer_json == world_tokenizer(file)
    assert file.name in source.files


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda lines: lines[:99] + lines[100:], "has no token for byte 99"),
        (lambda lines: [*lines, "999 'ab' 3"], "line 264 is not an id, a token and its bytes"),
        (lambda lines: [*lines, "999 open('x') 9"], "line 264 is not an id"),
        (lambda lines: [*lines, "999 'a' * 9 9"], "line 264 is not an id"),
        (lambda lines: [*lines, "999 '' 0"], "line 264 is not an id"),
        (lambda lines: [*lines, "999 'the' 3"], "line 264 has a token or an id for the second time"),
        (lambda lines: [*lines, "0 'ab' 2"], "line 264 has a token or an id for the second time"),
        (lambda lines: [*lines, "nonsense"], "line 264 is not an id"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, change: object, text: str) -> None:
    lines = [line(i + 1, token) for i, token in enumerate(TOKENS)]
    file = written(tmp_path, change(lines))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=text) as error:
        world_tokenizer(file)
    assert str(file) in str(error.value)


def test_long_tokens_and_other_word_pieces_are_refused(tmp_path: Path) -> None:
    lines = [line(i + 1, token) for i, token in enumerate([*TOKENS, b"y" * 129])]
    document = json.loads(world_tokenizer(written(tmp_path, lines)))
    with pytest.raises(TokenizerError, match="more than 128 bytes"):
        compile_tokenizer(json.dumps(document).encode(), {})
    document["model"]["continuing_subword_prefix"] = "##"
    with pytest.raises(TokenizerError, match="continuing_subword_prefix"):
        compile_tokenizer(json.dumps(document).encode(), {})


@pytest.mark.oracle
def test_the_authors_vocabulary_and_trie(tmp_path: Path) -> None:
    import random

    import rwkv
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    from tests.campaigns.tokenizer import random_text

    file = Path(rwkv.__file__).parent / "rwkv_vocab_v20230424.txt"
    theirs, ours = TRIE_TOKENIZER(str(file)), Ours(compile_tokenizer(world_tokenizer(file), {}))
    rng = random.Random(7)
    for _ in range(3000):
        text = random_text(rng)
        if END_OF_TEXT not in text:
            assert ours.encode(text, False) == theirs.encode(text)
