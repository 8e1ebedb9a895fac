"""Compares the board's tokenizer with Hugging Face `tokenizers` on fuzzed Unicode, one tokenizer of every kind.

    python -m tests.campaigns.tokenizer --n 100000 --seed 1

Per string: ids with and without special tokens, decoding of these ids and of random ids; of every fourth streaming, of
every sixteenth bytes that are no UTF-8, which are refused. A kind stops at its first difference, which is printed.
"""

from __future__ import annotations

import argparse
import base64
import glob
import json
import multiprocessing
import os
import random
import sys
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from crosscompile.tokenizer import BYTE_OF, compile_tokenizer
from crosscompile.world_vocabulary import world_document
from tests.charsmap import build
from tests.textlib import TEXT_INVALID, TextError, Tokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
]
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz ETAOIN.,'0123456789\n",
    " \t\n\r\u00a0\u2003\u3000\u0085\u200b\u180e\ufeff",
    "àéîõüßøłçñžÅŒſKıİ",
    "αβγδεζηθικλμνξοπρσςτυφχψω",
    "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "日本語中文漢字かなカナ한국어문자조선",
    "अआइईउऊक्षिनीयाहिन्दी",
    "กขคงจฉชซำาเแโไ",
    "ابتثجحخدذرزسشصضطظعغ\u064b\u064e\u0651",
    "\u0301\u0308\u0323\u0327\u0345\u05b0\u0f71\u0f72\u1100\u1161\u11a8\u3099",
    "👍🏽👩\u200d👩\u200d👧🇩🇪❤️😀🎉",
    "①Ⅷ½٣४๓²₃㍿ﬁﬀﷺ℃Å豈",
    "'s't're've'm'll'dS'T'RE'ſ",
    '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~',
    "▁Ġ▁ <s></s><unk><|end|><0x41>",
]
FRAGMENTS = ["<s>", "</s>", "<|start|>", "<|end|>", " <|end|> ", "<tool>", "word", "<0xE2>", "don't", "I'LL", "  ", "▁"]
FRAGMENTS += [
    "\r\n",
    "\n\n ",
    " \n",
    "1234567",
    "e\u0301",
    "\ud55c\uad6d",
    "café",
    "<|",
    "<|en",
    "<unk>",
    "HELLO",
    "\u2028",
]


TOGETHER, STREAMED, BROKEN = 256, 4, 16
"""Strings that are given to their tokenizer at once; one in so many is streamed, or broken."""

SCATTERED = range(0x20, 0x3000, 7)


def random_text(rng: random.Random, longest: int = 48) -> str:
    """A string that mixes scripts, spaces, marks, special tokens and unassigned code points of all planes."""
    parts: list[str] = []
    for _ in range(rng.randint(0, 6)):
        kind = rng.random()
        size = rng.randint(1, max(1, longest // 6))
        if kind < 0.55:
            parts += rng.choices(rng.choice(ALPHABETS), k=size)
        elif kind < 0.75:
            parts.append(rng.choice(FRAGMENTS))
        elif kind < 0.85:
            parts.append(rng.choice(words()))
        elif kind < 0.95:
            for _ in range(3):
                far = rng.random() < 0.1
                parts.append(chr(rng.randrange(0xE000, 0x110000) if far else rng.choice(SCATTERED)))
        else:
            parts.append(rng.choice(" \n'") * size)
    return "".join(parts)


@cache
def corpus() -> list[str]:
    """Text to train on: this Python's own sources and licences, and strings in many scripts."""
    rng = random.Random(7)
    lines: list[str] = []
    for path in sorted(glob.glob(json.__file__.replace("json/__init__.py", "*.py")))[:60]:
        lines += Path(path).read_text(encoding="utf-8", errors="replace").splitlines()[:400]
    lines += ["".join(rng.choice(alphabet) for _ in range(60)) for alphabet in ALPHABETS[:12] for _ in range(40)]
    return lines


@cache
def words() -> list[str]:
    return sorted({word for line in corpus() for word in line.split()})[::7]


SPECIALS = [AddedToken("<s>", special=True, normalized=False), AddedToken("</s>", special=True, normalized=False)]
EXTRAS = [
    AddedToken("<|start|>", special=True, normalized=False),
    AddedToken("<|end|>", special=True, normalized=False, lstrip=True, rstrip=True),
    AddedToken("<tool>", special=False, normalized=True),
    AddedToken("word", special=False, normalized=False, single_word=True),
]


def byte_level(
    pre: pre_tokenizers.PreTokenizer,
    normalizer: normalizers.Normalizer | None = None,
    ignore_merges: bool = False,
    bos: bool = False,
    extras: bool = True,
) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre
    if normalizer is not None:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(corpus(), trainer)
    made.add_special_tokens(SPECIALS)
    if extras:
        made.add_tokens(EXTRAS)
    if bos:
        template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    else:
        made.post_processor = processors.ByteLevel(trim_offsets=False)
    return made


def split_bytes(regex: str) -> pre_tokenizers.PreTokenizer:
    byte_step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), byte_step])


def dressed(
    trained: tokenizers.Tokenizer,
    normalizer: normalizers.Normalizer | None,
    pre: pre_tokenizers.PreTokenizer | None,
    decoder: str,
    template: processors.TemplateProcessing,
    extras: bool = True,
    **model: bool,
) -> tokenizers.Tokenizer:
    """A model trained on words behind ▁ with a family's own steps around it. model: what of it is changed."""
    document = json.loads(trained.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if not token["content"].startswith("<0x")]
    document["pre_tokenizer"] = None
    document["model"].update(model)
    made = tokenizers.Tokenizer.from_str(json.dumps(document))
    if normalizer is not None:
        made.normalizer = normalizer
    if pre is not None:
        made.pre_tokenizer = pre
    fallback = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if decoder == "llama":
        made.decoder = decoders.Sequence([*fallback, decoders.Strip(" ", 1, 0)])
    elif decoder == "gemma":
        made.decoder = decoders.Sequence(fallback)
    elif decoder == "metaspace":
        made.decoder = decoders.Metaspace()
    made.post_processor = template
    made.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    if extras:
        made.add_tokens([AddedToken("word", normalized=True)])
    return made


def sentencepiece(
    normalizer: normalizers.Normalizer | None,
    pre: pre_tokenizers.PreTokenizer | None,
    decoder: str,
    fallback: bool = True,
) -> tokenizers.Tokenizer:
    """Trained on words behind ▁, then given Llama's or Mistral's own steps around the model."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=fallback))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<unk>", "<s>", "</s>", *([f"<0x{b:02X}>" for b in range(256)] if fallback else [])],
        show_progress=False,
        limit_alphabet=200,
    )
    made.train_from_iterator(corpus(), trainer)
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return dressed(made, normalizer, pre, decoder, template)


def unigram(
    normalizer: normalizers.Normalizer | None,
    pre: pre_tokenizers.PreTokenizer | None,
    decoder: str,
    fallback: bool,
    extras: bool = True,
) -> tokenizers.Tokenizer:
    """A Unigram model trained on words behind ▁, with the steps of a family around it."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<unk>", "<s>", "</s>", *([f"<0x{b:02X}>" for b in range(256)] if fallback else [])]
    made.train_from_iterator(
        corpus(),
        trainers.UnigramTrainer(vocab_size=2500, special_tokens=names, unk_token="<unk>", show_progress=False),
    )
    template = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return dressed(made, normalizer, pre, decoder, template, extras, byte_fallback=fallback)


def t5_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])


@cache
def charsmap() -> normalizers.Normalizer:
    """Like SentencePiece's nmt_nfkc: NFKC of characters and of pairs that compose, controls gone, spaces made plain."""
    images = {}
    for point in (*range(0x80, 0x3400), *range(0xF900, 0x10000), *range(0x1D400, 0x1D7FF)):
        if (image := unicodedata.normalize("NFKC", chr(point))) != chr(point) and not 0xD800 <= point < 0xE000:
            images[chr(point)] = image
        canonical = unicodedata.normalize("NFD", chr(point))
        if len(canonical) == 2 and unicodedata.normalize("NFC", canonical) == chr(point):
            images[canonical] = chr(point)
    images.update({chr(c): " " for c in (9, 10, 13, 0x2028, 0x2029, 0x200B, 0xFEFF)})
    images.update({chr(c): "" for c in (*range(1, 9), 0x0B, 0x0E, 0x7F)})
    return normalizers.Precompiled(base64.b64decode(build(images)))


def albert_normalizer() -> normalizers.Normalizer:
    steps = [normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    return normalizers.Sequence([*steps, charsmap(), normalizers.Replace(Regex(" {2,}"), " ")])


def llama2_normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def odd_normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence(
        [normalizers.Strip(), normalizers.Lowercase(), normalizers.NFKD(), normalizers.Replace(Regex(r"\s{2,}"), " ")]
    )


def digits() -> pre_tokenizers.PreTokenizer:
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation("contiguous")]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def falcon() -> pre_tokenizers.PreTokenizer:
    """Two steps come after ByteLevel, and see what stands for bytes: ² is one of them, and counts as a digit."""
    steps = [
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ]
    return pre_tokenizers.Sequence(steps)


def starcoder() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])


def deepseek() -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in DEEPSEEK]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])


def gpt_neox() -> tokenizers.Tokenizer:
    """Runs of spaces are added tokens."""
    made = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC())
    made.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    return made


def gemma() -> tokenizers.Tokenizer:
    """Spaces become marks before anything else, so that there is nothing left to split at; runs are added tokens."""
    split = pre_tokenizers.Split(" ", "merged_with_previous")
    made = sentencepiece(normalizers.Replace(" ", "▁"), split, "gemma")
    runs = ["\n" * n for n in range(2, 8)] + ["▁" * n for n in range(2, 16)]
    made.add_tokens([AddedToken(run, normalized=False) for run in runs])
    made.add_special_tokens([AddedToken("<start_of_turn>", special=True), AddedToken("<pad>", special=True)])
    return made


def phi3() -> tokenizers.Tokenizer:
    """Llama's, with added tokens that swallow the space behind them."""
    made = sentencepiece(llama2_normalizer(), None, "llama")
    names = ("<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>")
    made.add_special_tokens([AddedToken(name, special=True, rstrip=True, normalized=False) for name in names])
    return made


def world() -> tokenizers.Tokenizer:
    """RWKV's: bytes, cut by the longest token. Some end in the middle of a character."""
    trained = json.loads(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)).to_str())["model"]["vocab"]
    rng = random.Random(4)
    runs = {"".join(rng.choices(sorted(trained)[:300], k=rng.randint(1, 5)))[:9] for _ in range(2000)}
    entries = [*sorted(BYTE_OF), *sorted({*trained, *runs} - BYTE_OF.keys())]
    document = world_document({bytes(BYTE_OF[char] for char in entry): i + 1 for i, entry in enumerate(entries)})
    return tokenizers.Tokenizer.from_str(json.dumps(document))


def metaspace(scheme: str, split: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=split)


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "gpt2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt2-prefix": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "llama3": lambda: byte_level(split_bytes(LLAMA3), ignore_merges=True, bos=True),
    "qwen2": lambda: byte_level(split_bytes(QWEN2), normalizers.NFC()),
    "o200k": lambda: byte_level(split_bytes(O200K), normalizers.NFKC()),
    "digits": lambda: byte_level(digits(), normalizers.NFD()),
    "odd": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), odd_normalizer(), extras=False),
    "llama2": lambda: sentencepiece(llama2_normalizer(), None, "llama"),
    "mistral": lambda: sentencepiece(None, metaspace("first", False), "llama"),
    "metaspace": lambda: sentencepiece(None, metaspace("always", True), "metaspace"),
    "falcon": lambda: byte_level(falcon()),
    "gpt-neox": gpt_neox,
    "stablelm": lambda: byte_level(split_bytes(QWEN2)),
    "olmo2": lambda: byte_level(split_bytes(LLAMA3)),
    "granite": lambda: byte_level(starcoder()),
    "tekken": lambda: byte_level(split_bytes(TEKKEN), ignore_merges=True, bos=True),
    "deepseek": lambda: byte_level(deepseek()),
    "gemma": gemma,
    "phi3": phi3,
    "unigram-bytes": lambda: unigram(llama2_normalizer(), None, "llama", True),
    "unigram-first": lambda: unigram(normalizers.NFKC(), metaspace("first", False), "metaspace", True),
    "unigram-words": lambda: unigram(normalizers.NFKC(), t5_pre_tokenizer(), "metaspace", False),
    "unigram-t5": lambda: unigram(charsmap(), t5_pre_tokenizer(), "metaspace", False),
    "unigram-xlmr": lambda: unigram(charsmap(), metaspace("always", True), "metaspace", False),
    "unigram-albert": lambda: unigram(albert_normalizer(), metaspace("always", True), "metaspace", False, False),
    "world": world,
    "unknowns": lambda: sentencepiece(normalizers.NFC(), metaspace("first", True), "none", fallback=False),
}


DEMO = Path(__file__).resolve().parents[2] / "examples" / "voice_assistant" / "model" / "tokenizer.json"
if DEMO.exists():
    KINDS["demo"] = lambda: tokenizers.Tokenizer.from_file(str(DEMO))


def differences(theirs: tokenizers.Tokenizer, ours: Tokenizer, texts: list[str], rng: random.Random) -> list[str]:
    """How the two tokenizers disagree about the first of `texts` that they disagree about; empty where they do not."""
    plain = theirs.encode_batch_fast(texts, add_special_tokens=False)
    special = theirs.encode_batch_fast(texts, add_special_tokens=True)
    theirs.encode_special_tokens = True
    literal = theirs.encode_batch_fast(texts, add_special_tokens=False)
    theirs.encode_special_tokens = False
    lottery = [lots(theirs, rng) for _ in texts]
    decoded: list[tuple[bool, list[list[int]], list[str]]] = []
    for ids in ([each.ids for each in special], lottery):
        skip = rng.random() < 0.5
        decoded.append((skip, ids, theirs.decode_batch(ids, skip_special_tokens=skip)))
    for i, text in enumerate(texts):
        found = []
        for arguments, want in (((False,), plain[i]), ((True,), special[i]), ((False, False), literal[i])):
            if (got := ours.encode(text, *arguments)) != want.ids:
                found.append(f"encode({text!r}, special, parse_special = {arguments}): want {want.ids}, got {got}")
        for skip, ids, shown in decoded:
            if (got_text := ours.decode(ids[i], skip)) != shown[i]:
                found.append(f"decode({ids[i]}, skip={skip}): want {shown[i]!r}, got {got_text!r}")
            if i % STREAMED == 0 and (streamed := "".join(ours.stream(ids[i], skip))) != shown[i]:
                found.append(f"stream({ids[i]}, skip={skip}): want {shown[i]!r}, got {streamed!r}")
        if i % BROKEN == 0:
            found += broken(ours, text, rng)
        if found:
            return found
    return []


def lots(theirs: tokenizers.Tokenizer, rng: random.Random) -> list[int]:
    """Random ids, half the time of bytes only; some are of no token."""
    first, behind = (0, theirs.get_vocab_size() + 3) if rng.random() < 0.5 else (3, 259)
    return [int(first + rng.random() * (behind - first)) for _ in range(rng.randint(0, 12))]


def broken(ours: Tokenizer, text: str, rng: random.Random) -> list[str]:
    """Bytes that are no UTF-8, as Python judges, are refused."""
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 3)):
        data.insert(rng.randint(0, len(data)), rng.choice((0x80, 0xBF, 0xC0, 0xE2, 0xED, 0xF0, 0xF4, 0xFF)))
    try:
        bytes(data).decode()
        return []
    except UnicodeDecodeError:
        pass
    try:
        got = str(ours.encode(bytes(data)))
    except TextError as error:
        got = str(error.status)
    return [] if got == str(TEXT_INVALID) else [f"encode({bytes(data)!r}): want it to be refused, got {got}"]


def compare(kind: str, n: int, seed: int) -> tuple[int, list[str]]:
    """Compares n strings. Returns how many were compared and the first differences."""
    theirs = KINDS[kind]()
    ours = Tokenizer(compile_tokenizer(theirs.to_str().encode(), {}))
    rng = random.Random(f"{kind} {seed}")
    for done in range(0, n, TOGETHER):
        texts = [random_text(rng) for _ in range(min(TOGETHER, n - done))]
        if found := differences(theirs, ours, texts, rng):
            return done + len(texts), found
    ours.close()
    return n, []


def verdict(kind: str, n: int, seed: int) -> tuple[str, int, list[str], float]:
    started = time.monotonic()
    return kind, *compare(kind, n, seed), time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--n", type=int, default=100_000, help="strings per kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=sorted(KINDS), action="append")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="kinds at a time")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    failed = False
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        kinds = arguments.kind or list(KINDS)
        jobs = [pool.submit(verdict, kind, arguments.n, arguments.seed) for kind in kinds]
        for job in as_completed(jobs):
            kind, count, found, seconds = job.result()
            print(f"{kind:14} {count:8} strings, {'DIFFERENT' if found else 'equal'}, {seconds:.1f} s", flush=True)
            for line in found[:3]:
                print("   ", line)
            failed = failed or bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
