"""Tokenizers of GGUF files: the same as those of the tokenizer.json that the keys were made of."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from crosscompile.errors import CheckpointError, TokenizerError
from crosscompile.gguf_file import Value
from crosscompile.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, texts_of
from crosscompile.tokenizer import compile_tokenizer
from tests.campaigns.tokenizer import KINDS, random_text

FILE = Path("model.gguf")


def keys_of(document: dict[str, Any], model: str, **more: Value) -> dict[str, Value]:
    """What llama.cpp's converter writes of a tokenizer.json."""
    texts = {index: text for text, index in document["model"]["vocab"].items()}
    added = {token["id"]: token for token in document["added_tokens"]}
    tokens = [added[i]["content"] if i in added else texts[i] for i in range(len(texts.keys() | added.keys()))]
    types = [(CONTROL if added[i]["special"] else USER_DEFINED) if i in added else NORMAL for i in range(len(tokens))]
    keys: dict[str, Value] = {"model": model, "tokens": list(tokens), "token_type": np.array(types, np.int32), **more}
    if model == "gpt2":
        keys["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def plain(kind: str) -> dict[str, Any]:
    """A tokenizer of the campaign, without what a GGUF file cannot say of an added token."""
    document: dict[str, Any] = json.loads(KINDS[kind]().to_str())
    kept = []
    for token in document["added_tokens"]:
        if not token["single_word"]:
            kept.append({**token, "lstrip": False, "rstrip": False, "normalized": False})
    return {**document, "added_tokens": kept}


@pytest.mark.parametrize(
    ("kind", "pre"),
    [("gpt2", "gpt-2"), ("llama3", "llama-bpe"), ("qwen2", "qwen2"), ("falcon", "falcon"), ("granite", "refact")],
)
def test_byte_level_tokenizers_compile_to_the_same_bytes(kind: str, pre: str) -> None:
    document = plain(kind)
    bos = document["model"]["vocab"].get(
        "<s>", next(t["id"] for t in document["added_tokens"] if t["content"] == "<s>")
    )
    keys = keys_of(document, "gpt2", pre=pre, bos_token_id=bos)
    found = texts_of(FILE, keys, 1 << 20)
    assert found.tokenizer_json is not None
    made = tokenizers.Tokenizer.from_str(found.tokenizer_json.decode())
    theirs = tokenizers.Tokenizer.from_str(json.dumps(document))
    rng = random.Random(4)
    for _ in range(400):
        text = random_text(rng)
        assert made.encode(text).ids == theirs.encode(text).ids, text
        ids = theirs.encode(text).ids
        assert made.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)
    compile_tokenizer(found.tokenizer_json, found.tokenizer_config)
    assert found.special_tokens == {"bos_token": "<s>"}


def sentencepiece(text: str, pieces: dict[str, tuple[int, float]]) -> list[int]:
    """SentencePiece's own BPE: of all neighbours, those join first whose piece has the best score, leftmost first."""
    parts = list(text)
    while True:
        best: tuple[float, int] | None = None
        for at in range(len(parts) - 1):
            piece = pieces.get(parts[at] + parts[at + 1])
            if piece is not None and (best is None or piece[1] > best[0]):
                best = (piece[1], at)
        if best is None:
            break
        at = best[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids: list[int] = []
    for part in parts:
        if part in pieces:
            ids.append(pieces[part][0])
        else:
            ids += [3 + byte for byte in part.encode()]
    return ids


def sentencepiece_keys(**more: Value) -> tuple[dict[str, Value], dict[str, tuple[int, float]]]:
    """Keys of a vocabulary of pieces with scores, and the pieces: text -> (id, score)."""
    trained = json.loads(KINDS["llama2"]().to_str())["model"]["vocab"]
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [text for text, i in sorted(trained.items(), key=lambda item: item[1]) if text not in texts]
    pieces.sort(key=len)
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)]
    scores = [0.0] * 259 + [-float(index) for index in range(len(pieces))]
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts + pieces,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **more,
    }
    return keys, {text: (259 + i, -float(i)) for i, text in enumerate(pieces)}


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_vocabularies_merge_by_score(prefix: bool) -> None:
    keys, pieces = sentencepiece_keys(**{"tokenizer.ggml.add_space_prefix": prefix})
    found = texts_of(FILE, keys, 1 << 20)
    assert found.tokenizer_json is not None
    made = tokenizers.Tokenizer.from_str(found.tokenizer_json.decode())
    rng = random.Random(6)
    for _ in range(300):
        text = random_text(rng).replace("<", "(").replace("▁", "_")
        changed = ("▁" * (prefix and bool(text)) + text).replace(" ", "▁")
        assert made.encode(text, add_special_tokens=False).ids == sentencepiece(changed, pieces), text
        assert made.decode(made.encode(text).ids) == text
    assert made.encode("a").ids[0] == 1
    assert found.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert found.generation_config == {"eos_token_id": [2]}
    compile_tokenizer(found.tokenizer_json, {})


def test_a_whole_tokenizer_json_goes_before_the_keys(tmp_path: Path) -> None:
    document = plain("odd")
    keys = keys_of(document, "gpt2", pre="nobody's")
    with pytest.raises(TokenizerError, match=r"pre \"nobody's\" is not known.*put the original.*as m\.tokenizer\.json"):
        texts_of(tmp_path / "m.gguf", keys, 1 << 20)
    text = json.dumps(document)
    inside = texts_of(tmp_path / "m.gguf", {**keys, "tokenizer.huggingface.json": text}, 1 << 20)
    (tmp_path / "m.tokenizer.json").write_text(text)
    beside = texts_of(tmp_path / "m.gguf", keys, 1 << 20)
    assert inside.tokenizer_json == beside.tokenizer_json == text.encode()
    assert beside.files == (tmp_path / "m.tokenizer.json",)


@pytest.mark.parametrize(
    ("changed", "kind", "text"),
    [
        ({"tokens": "x"}, CheckpointError, "tokens must be a list of texts"),
        ({"tokens": []}, CheckpointError, "tokens must be a list of texts"),
        ({"token_type": np.zeros(3, np.int32)}, CheckpointError, "token_type must have a number for each of the"),
        ({"scores": np.zeros(3, np.float32)}, CheckpointError, "scores must have a number for each"),
        ({"bos_token_id": 1 << 30}, CheckpointError, "bos_token_id 1073741824 is not the id of one of"),
        ({"add_bos_token": 1}, CheckpointError, "add_bos_token must be true or false, not 1"),
        ({"model": "t5"}, TokenizerError, "tokenizer.ggml.model 't5' is not known"),
        ({"precompiled_charsmap": np.zeros(3, np.uint8)}, TokenizerError, "precompiled_charsmap is not known"),
        ({"model": "gpt2", "pre": "gpt-2", "merges": ["ab"]}, CheckpointError, "merges must be a list of pairs"),
    ],
)
def test_malformed_keys_are_named(changed: dict[str, Value], kind: type[Exception], text: str) -> None:
    keys, _ = sentencepiece_keys()
    keys |= {f"tokenizer.ggml.{name}": value for name, value in changed.items()}
    with pytest.raises(kind, match=text) as error:
        texts_of(FILE, keys, 1 << 20)
    assert str(FILE) in str(error.value)


def test_more_tokens_than_embeddings_are_refused() -> None:
    keys, _ = sentencepiece_keys()
    with pytest.raises(CheckpointError, match=r"tokens has \d+ texts, the embedding 10 rows"):
        texts_of(FILE, keys, 10)


def test_every_pre_tokenizer_compiles() -> None:
    from crosscompile.gguf_tokenizer import PRE_TOKENIZERS

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    for name in PRE_TOKENIZERS:
        keys: dict[str, Value] = {"model": "gpt2", "pre": name, "tokens": list(alphabet), "merges": []}
        found = texts_of(FILE, {f"tokenizer.ggml.{key}": value for key, value in keys.items()}, 1 << 20)
        assert found.tokenizer_json is not None
        compile_tokenizer(found.tokenizer_json, {})
