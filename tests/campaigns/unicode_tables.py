"""Regenerates crosscompile/unicode_tables.py by asking the installed `tokenizers` about every code point.

    python -m tests.campaigns.unicode_tables > crosscompile/unicode_tables.py

The tables are measured, not taken from Python's own unicodedata, because the board must agree with `tokenizers`
whatever Unicode version Python has. Combining classes are the exception: no API reveals them, but Unicode promises
never to change one once assigned, so Python's value is used wherever `tokenizers` is seen to reorder the mark.
"""

from __future__ import annotations

import base64
import json
import unicodedata
import zlib
from collections.abc import Callable, Iterable

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from tests.charsmap import build

POINTS = [*range(0xD800), *range(0xE000, 0x110000)]
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn".split()
HANGUL = range(0xAC00, 0xAC00 + 11172)


def ranges(points: Iterable[int]) -> list[int]:
    """Ascending code points as a flat list of inclusive (first, last) pairs."""
    flat: list[int] = []
    for point in points:
        if flat and flat[-1] == point - 1:
            flat[-1] = point
        else:
            flat += [point, point]
    return flat


def matching(splitter: pre_tokenizers.PreTokenizer) -> list[int]:
    """Code points that `splitter` removes."""
    text = "".join(map(chr, POINTS))
    kept = [False] * len(text)
    for _, (start, end) in splitter.pre_tokenize_str(text):
        kept[start:end] = [True] * (end - start)
    return ranges(point for point, keep in zip(POINTS, kept, strict=True) if not keep)


def mapping(normalize: Callable[[str], str]) -> dict[int, str]:
    return {point: image for point in POINTS if (image := normalize(chr(point))) != chr(point)}


def folds(letter: str) -> list[int]:
    """Code points that the case-insensitive `letter` matches."""
    return matching(pre_tokenizers.Split(Regex(f"(?i:{letter})"), "removed"))


def word_characters() -> list[int]:
    """What ends a word where an added token asks for `single_word` (Rust's \\w, which has the joiners)."""
    probe = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    probe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    probe.add_tokens([AddedToken("=>", single_word=True, normalized=False)])
    inside = []
    for start in range(0, len(POINTS), 4096):
        part = POINTS[start : start + 4096]
        text = "".join(f" {chr(point)}=>" for point in part)
        found = {
            last for token, (_, last) in zip(*(lambda e: (e.ids, e.offsets))(probe.encode(text)), strict=True) if token
        }
        inside += [point for index, point in enumerate(part) if 4 * index + 4 not in found]
    return ranges(inside)


def matching_accents() -> list[int]:
    """What StripAccents takes away."""
    strip = normalizers.StripAccents()
    return ranges(point for point in POINTS if strip.normalize_str(chr(point)) == "")


GRAPHEMES = "CR LF Control Extend ZWJ Regional_Indicator Prepend SpacingMark L V T LV LVT".split()


def graphemes() -> dict[str, list[int]]:
    """What decides where grapheme clusters end, by the `regex` package; those that join what is before them are
    measured, for `tokenizers` may know another version of Unicode."""
    import regex

    text = "".join(map(chr, POINTS))

    def having(*properties: str) -> set[int]:
        return {ord(m.group()) for name in properties for m in regex.finditer(rf"\p{{{name}}}", text)}

    made = {name: having(f"GCB={name}") for name in GRAPHEMES}
    probe = normalizers.Precompiled(base64.b64decode(build({"e": "Z"})))
    joins = {p for p in POINTS if probe.normalize_str("e" + chr(p)) == "Z"}
    known = made["Extend"] | made["ZWJ"] | made["SpacingMark"]
    made["SpacingMark"] &= joins
    extend = (made["Extend"] & joins) | (joins - known)
    made["Pictographic"] = having("ExtPict")
    made["Consonant"] = having("InCB=Consonant")
    made["Linker"] = extend & having("InCB=Linker")
    made["Extend"] = extend & having("InCB=Extend") - made["Linker"]
    made["Loose"] = extend - made["Linker"] - made["Extend"]
    return {name: ranges(sorted(points)) for name, points in made.items()}


def main() -> None:
    nfd, nfc, nfkd = normalizers.NFD(), normalizers.NFC(), normalizers.NFKD()
    canonical = {k: v for k, v in mapping(nfd.normalize_str).items() if k not in HANGUL}
    compatible = {k: v for k, v in mapping(nfkd.normalize_str).items() if k not in HANGUL and canonical.get(k) != v}
    compose = []
    for point in POINTS:
        parts = unicodedata.decomposition(chr(point)).split()
        if len(parts) == 2 and "<" not in parts[0]:
            pair = [int(part, 16) for part in parts]
            if nfc.normalize_str("".join(map(chr, pair))) == chr(point):
                compose.append([*pair, point])
    marks: dict[int, list[int]] = {}
    for point in POINTS:
        value = unicodedata.combining(chr(point))
        if value and (value == 240 or nfd.normalize_str("\u0345" + chr(point))[0] != "\u0345"):
            marks.setdefault(value, []).append(point)
    classes = {name: matching(pre_tokenizers.Split(Regex(rf"\p{{{name}}}"), "removed")) for name in CATEGORIES}
    for name in "swdh":
        classes["\\" + name] = matching(pre_tokenizers.Split(Regex("\\" + name), "removed"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    classes["numeric"] = ranges(p for p in POINTS if len(digits.pre_tokenize_str(f"a{chr(p)}b")) > 1)
    classes["punctuation"] = matching(pre_tokenizers.Punctuation("removed"))
    classes["word"] = word_characters()
    classes["whitespace"] = matching(pre_tokenizers.WhitespaceSplit())
    classes["accents"] = matching_accents()
    tables = {
        "graphemes": graphemes(),
        "canonical": [[k, [ord(c) for c in v]] for k, v in sorted(canonical.items())],
        "compatible": [[k, [ord(c) for c in v]] for k, v in sorted(compatible.items())],
        "lowercase": [
            [k, [ord(c) for c in v]] for k, v in sorted(mapping(normalizers.Lowercase().normalize_str).items())
        ],
        "compose": sorted(compose),
        "marks": {str(value): ranges(points) for value, points in sorted(marks.items())},
        "classes": classes,
        "folds": {letter: folds(letter) for letter in "abcdefghijklmnopqrstuvwxyz"},
    }
    packed = base64.b85encode(zlib.compress(json.dumps(tables, separators=(",", ":")).encode(), 9)).decode()
    print('"""Generated by tests/campaigns/unicode_tables.py; do not edit. Read through crosscompile.unicode."""\n')
    print("PACKED = (")
    for start in range(0, len(packed), 108):
        print(f'    "{packed[start : start + 108]}"')
    print(")")


if __name__ == "__main__":
    main()
