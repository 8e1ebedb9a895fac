"""RoPE frequencies equal transformers', and what is not supported is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from crosscompile.errors import ConfigError
from crosscompile.models.rope import rope_parameters

CASES = json.loads((Path(__file__).parents[1] / "data" / "rope.json").read_text())
BASE = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 4096}


@pytest.mark.parametrize("case", CASES, ids=lambda case: json.dumps(case["config"].get("rope_scaling", "default"))[:40])
def test_frequencies_equal_transformers(case):
    frequencies, scaling = rope_parameters(case["config"])
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, np.array(case["inv_freq"], np.float32), rtol=3e-7)
    assert scaling == pytest.approx(case["scaling"], rel=1e-12)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"rope_scaling": {"rope_type": "proportional", "factor": 4.0}},
            "'proportional' is not supported; supported are default",
        ),
        ({"rope_scaling": {"type": "linear"}}, "lack 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "'factor' must be a positive number"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lack 'low_freq_factor'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "'short_factor' must be a list of 32 positive"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [0.0] * 32}},
            "'long_factor' must be a list of 32 positive",
        ),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differs by layer type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_theta": -1.0}, "'rope_theta' must be a positive number"),
        ({"head_dim": 31}, "head_dim 31 must be a positive even number"),
    ],
)
def test_what_is_not_supported_is_named(change, text):
    with pytest.raises(ConfigError, match=r"config\.json") as error:
        rope_parameters({**BASE, **change})
    assert text in str(error.value)
