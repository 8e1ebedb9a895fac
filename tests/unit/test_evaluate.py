"""What `edgellm eval` measures: the answers of conversations, and numbers that mean what they say."""

import json

import numpy as np
import pytest

from crosscompile import checkpoint
from edgellm.errors import UsageError
from edgellm.evaluate import Tally
from edgellm.texts import Sample, encode, read_texts
from tests.oracle.configurations import BASE, write_checkpoint


@pytest.fixture
def source(tmp_path):
    return checkpoint.load(write_checkpoint(tmp_path / "model", BASE))


def test_of_a_conversation_the_answers_are_measured(tmp_path, source):
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
        {"role": "assistant", "content": "ciao"},
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"messages": messages}) + "\n\n" + json.dumps({"text": "abc"}) + "\n")
    conversation, plain = read_texts(file, source)
    assert conversation.text.startswith("<s>user: hi</s><s>assistant: hello</s>")
    assert [conversation.text[low:high] for low, high in conversation.spans] == ["hello</s>", "ciao</s>"]
    samples = encode(source, [conversation, plain], 512)
    measured = bytes(samples[0].ids[p + 1] for p in samples[0].positions if samples[0].ids[p + 1] < 256)
    assert measured == b"hellociao"
    assert samples[1] == Sample([97, 98, 99], [0, 1])
    assert encode(source, [conversation], 5) == []


def test_texts_that_cannot_be_read(tmp_path, source):
    file = tmp_path / "texts.jsonl"
    for content, text in (("{", "line 1 is not JSON"), ("{}", 'line 1 has neither "messages" nor "text"')):
        file.write_text(content)
        with pytest.raises(UsageError, match=text):
            read_texts(file, source)
    with pytest.raises(UsageError, match="cannot be read"):
        read_texts(tmp_path / "nope.jsonl", source)


def test_measures():
    exact = np.log(np.array([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [1, 1, 1]], np.float32))
    found = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1, 1, 1]], np.float32))
    same, other = Tally(), Tally()
    same.add(exact, exact, Sample([0, 1, 2], [0, 1]))
    other.add(exact, found, Sample([0, 1, 2], [0, 1]))
    quality = same.quality("f32", 10)
    assert (quality.kl_nats, quality.top1_agreement, quality.max_logit_error) == (0, 1, 0)
    assert quality.perplexity == pytest.approx((0.25 * 0.1) ** -0.5)
    quality = other.quality("w4a8", 10)
    assert quality.kl_nats == pytest.approx(0.7 * np.log(8) / 2, rel=1e-6)
    assert quality.top1_agreement == 0.5
    assert quality.max_logit_error == pytest.approx(np.log(8) / -np.log(0.1), rel=1e-6)
