"""Writes toy_tokenizer.bin, the tokenizer of the C tests' toy bundle: 32 tokens, BPE with one merge; and toy_chat.bin.

Run `python runtime_c/tests/toy_tokenizer.py` again when the format of tokenizer.bin or chat.bin changes.
"""

import json
from pathlib import Path

from crosscompile.template import compile_template
from crosscompile.tokenizer import compile_tokenizer

VOCABULARY = {character: index for index, character in enumerate("abcdefghijklmnopqrstuvwxyz .,!?")} | {"ab": 31}
MODEL = {"type": "BPE", "vocab": VOCABULARY, "merges": ["a b"], "dropout": None, "unk_token": None}
MODEL |= {"continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
TOKENIZER = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
TOKENIZER |= {
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {**MODEL, "ignore_merges": False},
}

CHAT = """\
{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}{{ message.role }} {{ message.content }}
{%- for call in message.tool_calls or [] %} {{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}
{% if message.content == "fail" %}{{ raise_exception("it was told to fail") }}{% endif %}.
{%- endfor %}{% if add_generation_prompt %}a {% endif %}"""

if __name__ == "__main__":
    Path(__file__).with_suffix(".bin").write_bytes(compile_tokenizer(json.dumps(TOKENIZER).encode(), {}))
    Path(__file__).with_name("toy_chat.bin").write_bytes(compile_template(CHAT, {}))
