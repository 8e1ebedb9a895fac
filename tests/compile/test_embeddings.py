"""/v1/embeddings, /api/embed and /api/embeddings: official clients, against NumPy's last hidden states."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import openai
import pytest

from crosscompile import checkpoint
from crosscompile.models.architecture import scheme_for
from crosscompile.reference import Llama
from edgellm import bundle as bundles
from tests.server import MODEL, QUESTIONS, Server

LONG = " ".join(QUESTIONS * 4)
"""More than one piece of 64 rows."""


def embedding_of(tokens: Sequence[int], pooling: str = "mean") -> np.ndarray:
    """What an embedding should be: the mean or the last of the hidden states behind the final norm, of length 1."""
    states: list[tuple[str, np.ndarray]] = []

    def note(name: str, *values: np.ndarray) -> None:
        states.append((name, values[0]))

    network = Llama(checkpoint.load(MODEL), scheme_for("w4a8"), note)
    network.logits(tokens)
    name, last = states[-2]
    assert name == "rms_norm"
    pooled = last.astype(np.float64).sum(axis=0) if pooling == "mean" else last[-1].astype(np.float64)
    return pooled / np.linalg.norm(pooled)


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_openai_s_client_gets_the_reference_s_means(client: openai.OpenAI, model: str) -> None:
    ids = [[1, 385, 201, 382, 972], list(range(3, 150))]
    answer = client.embeddings.create(model=model, input=ids)  # in base64, which the client asks for by itself
    assert [item.index for item in answer.data] == [0, 1]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (152, 152)
    for tokens, item in zip(ids, answer.data, strict=True):
        np.testing.assert_allclose(item.embedding, embedding_of(tokens), atol=2e-7)
    plain = client.embeddings.create(model=model, input=ids, encoding_format="float")
    assert [np.float32(item.embedding).tolist() for item in plain.data] == [
        np.float32(item.embedding).tolist() for item in answer.data
    ]


def test_texts_of_any_number_and_the_same_bits_in_company(client: openai.OpenAI, model: str, server: Server) -> None:
    texts = [*QUESTIONS, LONG, QUESTIONS[0]]
    together = [item.embedding for item in client.embeddings.create(model=model, input=texts).data]
    assert together[0] == together[-1]
    for text, expected in zip(texts[-3:], together[-3:], strict=True):
        assert client.embeddings.create(model=model, input=text).data[0].embedding == expected
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-6)
    chat = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "temperature": 0, "max_tokens": 20}
    before = server.post("/v1/chat/completions", chat)[1]["choices"][0]["message"]
    many = client.embeddings.create(model=model, input=["word"] * 300).data
    assert len({tuple(item.embedding) for item in many}) == 1
    assert server.post("/v1/chat/completions", chat)[1]["choices"][0]["message"] == before


@pytest.fixture(scope="module")
def speaker(server: Server) -> Iterator[ollama.Client]:
    speaker = ollama.Client(host=server.url, timeout=60)
    yield speaker
    speaker._client.close()  # older ones have no close of their own


def test_ollama_s_client_gets_the_same(speaker: ollama.Client, client: openai.OpenAI, model: str) -> None:
    expected = [item.embedding for item in client.embeddings.create(model=model, input=QUESTIONS[:2]).data]
    answer = speaker.embed(model=model, input=QUESTIONS[:2])
    np.testing.assert_array_equal(np.float32(answer.embeddings), np.float32(expected))
    assert answer.prompt_eval_count is not None
    assert answer.prompt_eval_count > 4
    older = speaker.embeddings(model=model, prompt=QUESTIONS[0])
    np.testing.assert_array_equal(np.float32(older.embedding), np.float32(expected[0]))
    assert len(speaker.embed(model=model, input="word " * 5000).embeddings) == 1  # cut to the context, as Ollama does
    with pytest.raises(ollama.ResponseError, match="the context"):
        speaker.embed(model=model, input="word " * 5000, truncate=False)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({}, "missing"),
        ({"input": []}, "empty"),
        ({"input": 7}, "list of token ids"),
        ({"input": [[1, -1]]}, "list of token ids"),
        ({"input": [1, 99999]}, "list of token ids"),
        ({"input": [["a"]]}, "list of token ids"),
        ({"input": ""}, "empty"),
        ({"input": "x", "dimensions": 7}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": ["x"] * 3000}, "2048"),
        ({"input": "word " * 5000}, "the context"),
    ],
)
def test_what_cannot_be_embedded(server: Server, body: dict[str, Any], what: str) -> None:
    status, answer = server.post("/v1/embeddings", body)
    assert status == 400
    assert what in answer["error"]["message"]


def changed(bundle: Path, copy: Path, embedding: dict[str, Any] | None) -> Server:
    """A server of the bundle whose plan says this about embeddings."""
    bundles.copy(bundles.read(bundle), copy)
    plan = json.loads((copy / "plan.json").read_text())
    plan["embedding"] = plan.pop("embedding") | (embedding or {})
    if embedding is None:
        del plan["embedding"]
    (copy / "plan.json").unlink()
    (copy / "plan.json").write_text(json.dumps(plan))
    manifest = {k: v for k, v in bundles.read(bundle).manifest.items() if k not in ("format", "files")}
    bundles.seal(copy, manifest)
    return Server(copy)


def test_a_model_that_pools_by_the_last_token(bundle: Path, tmp_path: Path) -> None:
    server = changed(bundle, tmp_path / "last", {"pooling": "last"})
    try:
        for tokens in ([5], list(range(3, 150))):  # the second in several pieces
            answer = server.post("/v1/embeddings", {"input": tokens})[1]
            np.testing.assert_allclose(answer["data"][0]["embedding"], embedding_of(tokens, "last"), atol=2e-7)
    finally:
        assert server.stop() == 0


def test_a_bundle_without_them_says_so(bundle: Path, tmp_path: Path) -> None:
    server = changed(bundle, tmp_path / "older", None)
    try:
        for path, body in (("/v1/embeddings", {"input": "x"}), ("/api/embed", {"input": "x"})):
            status, answer = server.post(path, body)
            assert (status, "compile the model again" in json.dumps(answer)) == (501, True)
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("embedding", [{"pooling": "cls"}, {"functions": []}, {"functions": 7}])
def test_a_plan_that_is_wrong_about_them(bundle: Path, tmp_path: Path, embedding: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match=r"plan\.json.*embedding"):
        changed(bundle, tmp_path / "wrong", embedding)
