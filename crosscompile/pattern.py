r"""Compiles the regular expressions of pre-tokenizers to the board's matcher (runtime_c/FORMAT.md, "Patterns").

The subset: literals, classes, \p{..} of general categories, \s \w \d \h, alternation, groups, (?i:..), look-ahead, and
the quantifiers ? * + {m,n}, greedy or (on one character) possessive. Semantics are those of Oniguruma, which
`tokenizers` uses: alternatives in order, first match wins.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from . import unicode
from .errors import TokenizerError
from .unicode import Ranges

CHAR, CLASS, SPAN, SPLIT, JUMP, LOOK, MATCH = range(1, 8)
NONE = 0xFFFFFFFF
MOST_COPIES = 64
MOST_WORDS = 1 << 16
# Sequences that a case-insensitive Oniguruma also matches as one ligature or eszett.
FOLDED_PAIRS = {"ss", "st", "ff", "fi", "fl"}
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b"}


@dataclass(frozen=True)
class Set:
    """One code point out of `ranges`."""

    ranges: Ranges
    folded_letter: str = ""


@dataclass(frozen=True)
class Sequence:
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    item: Node
    least: int
    most: int
    possessive: bool


@dataclass(frozen=True)
class Look:
    item: Node
    negative: bool


Node = Set | Sequence | Choice | Repeat | Look


@dataclass
class Program:
    """Instruction words and the classes they use; shared by all patterns of one tokenizer."""

    words: list[int] = field(default_factory=list)
    classes: list[Ranges] = field(default_factory=list)

    def class_of(self, ranges: Ranges) -> int:
        if ranges not in self.classes:
            self.classes.append(ranges)
        return self.classes.index(ranges)

    def add(self, node: Node) -> int:
        """Appends a pattern; returns the index of its first word."""
        start = len(self.words)
        emit(self, node)
        self.words.append(MATCH)
        if len(self.words) > MOST_WORDS:
            raise TokenizerError("tokenizer.json: a pre-tokenizer pattern is too large for the board's matcher.")
        return start


def nullable(node: Node) -> bool:
    """Whether the node can match the empty string."""
    if isinstance(node, Sequence):
        return all(map(nullable, node.items))
    if isinstance(node, Choice):
        return any(map(nullable, node.items))
    if isinstance(node, Repeat):
        return node.least == 0 or nullable(node.item)
    return isinstance(node, Look)


def emit(program: Program, node: Node) -> None:
    words = program.words
    if isinstance(node, Set):
        if len(node.ranges) == 1 and node.ranges[0][0] == node.ranges[0][1]:
            words += [CHAR, node.ranges[0][0]]
        else:
            words += [CLASS, program.class_of(node.ranges)]
    elif isinstance(node, Sequence):
        for item in node.items:
            emit(program, item)
    elif isinstance(node, Choice):
        ends = []
        for item in node.items[:-1]:
            split = len(words)
            words += [SPLIT, split + 3, 0]
            emit(program, item)
            ends.append(len(words) + 1)
            words += [JUMP, 0]
            words[split + 2] = len(words)
        emit(program, node.items[-1])
        for end in ends:
            words[end] = len(words)
    elif isinstance(node, Look):
        start = len(words)
        words += [LOOK, int(node.negative), 0]
        emit(program, node.item)
        words.append(MATCH)
        words[start + 2] = len(words)
    elif isinstance(node.item, Set):
        words += [SPAN, program.class_of(node.item.ranges), node.least, node.most, int(node.possessive)]
    else:
        emit_repeat(program, node)


def emit_repeat(program: Program, node: Repeat) -> None:
    words = program.words
    for _ in range(node.least):
        emit(program, node.item)
    if node.most == NONE:
        split = len(words)
        words += [SPLIT, split + 3, 0]
        emit(program, node.item)
        words += [JUMP, split]
        words[split + 2] = len(words)
        return
    skips = []
    for _ in range(node.most - node.least):
        skips.append(len(words) + 2)
        words += [SPLIT, len(words) + 3, 0]
        emit(program, node.item)
    for skip in skips:
        words[skip] = len(words)


class Parser:
    """Recursive descent over one pattern."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def fail(self, construct: str) -> TokenizerError:
        return TokenizerError(
            f"tokenizer.json: the pattern {self.text!r} uses {construct} at character {self.at}, which the board's "
            "matcher does not have. Use a checkpoint of a supported family, or extend crosscompile/pattern.py."
        )

    def peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def take(self, text: str) -> bool:
        found = self.peek(text)
        self.at += len(text) * found
        return found

    def next(self) -> str:
        if self.at >= len(self.text):
            raise self.fail("an unfinished construct")
        self.at += 1
        return self.text[self.at - 1]

    def parse(self) -> Node:
        fold = self.take("(?i)")
        node = self.choice(fold)
        if self.at < len(self.text):
            raise self.fail("an unmatched ')'")
        return node

    def choice(self, fold: bool) -> Node:
        items = [self.sequence(fold)]
        while self.take("|"):
            items.append(self.sequence(fold))
        return items[0] if len(items) == 1 else Choice(tuple(items))

    def sequence(self, fold: bool) -> Node:
        items: list[Node] = []
        while self.at < len(self.text) and not self.peek("|") and not self.peek(")"):
            item = self.quantified(self.atom(fold), fold)
            before = items[-1] if items else None
            letters = [node.folded_letter for node in (before, item) if isinstance(node, Set)]
            if "".join(letters) in FOLDED_PAIRS:
                raise self.fail("a case-insensitive sequence that also matches a ligature")
            items.append(item)
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def quantified(self, item: Node, fold: bool) -> Node:
        if self.take("?"):
            least, most = 0, 1
        elif self.take("*"):
            least, most = 0, NONE
        elif self.take("+"):
            least, most = 1, NONE
        elif self.peek("{"):
            least, most = self.counts()
        else:
            return item
        if self.peek("?"):
            raise self.fail("a lazy quantifier")
        possessive = self.take("+")
        if self.peek("*") or self.peek("{") or self.peek("+"):
            raise self.fail("a doubled quantifier")
        if isinstance(item, Look):
            raise self.fail("a repeated look-ahead")
        if not isinstance(item, Set):
            if possessive:
                raise self.fail("a possessive group")
            if nullable(item):
                raise self.fail("a repeated group that can be empty")
            if max(least, 0 if most == NONE else most) > MOST_COPIES:
                raise self.fail(f"a group repeated more than {MOST_COPIES} times")
        return Repeat(item, least, most, possessive)

    def counts(self) -> tuple[int, int]:
        end = self.text.find("}", self.at)
        body = self.text[self.at + 1 : end] if end > 0 else ""
        low, comma, high = body.partition(",")
        if not (low or high) or not (low + high).isdecimal():
            raise self.fail("a malformed {m,n}")
        least = int(low or 0)
        most = int(high) if high else NONE if comma else least
        if most < least or least > 0xFFFF:
            raise self.fail("a malformed {m,n}")
        self.at = end + 1
        if self.peek("+"):
            raise self.fail("{m,n}+")
        return least, most

    def atom(self, fold: bool) -> Node:
        if self.take("("):
            if self.take("?=") or self.peek("?!"):
                negative = self.take("?!")
                node: Node = Look(self.choice(fold), negative)
            else:
                inner = fold
                if self.take("?i:"):
                    inner = True
                elif self.take("?:"):
                    pass
                elif self.peek("?"):
                    raise self.fail(f"the group ({self.text[self.at : self.at + 3]}…")
                node = self.choice(inner)
            if not self.take(")"):
                raise self.fail("an unmatched '('")
            return node
        if self.take("["):
            return Set(self.bracket(fold))
        if self.take("."):
            return Set(unicode.complement(((10, 10),)))
        if self.text[self.at] in "^$*+?{}":
            raise self.fail(f"{self.text[self.at]!r}")
        if self.take("\\"):
            escaped = self.escape()
            return self.literal(escaped, fold) if isinstance(escaped, str) else Set(escaped)
        return self.literal(self.next(), fold)

    def literal(self, char: str, fold: bool) -> Set:
        if fold and char.isalpha():
            if not char.isascii():
                raise self.fail("a case-insensitive non-ASCII letter")
            return Set(unicode.folded(char), char.lower())
        return Set(((ord(char), ord(char)),))

    def escape(self) -> str | Ranges:
        """A literal character, or the set an escape stands for. The backslash has been taken."""
        char = self.next()
        if char in "pP":
            if not self.take("{"):
                raise self.fail(f"\\{char} without braces")
            end = self.text.find("}", self.at)
            name = self.text[self.at : end] if end > 0 else ""
            negated = name.startswith("^")
            found = unicode.named(name.lstrip("^"))
            if found is None or not name.lstrip("^").isalpha() or len(name.lstrip("^")) > 2:
                raise self.fail(f"\\p{{{name}}}")
            self.at = end + 1
            return unicode.complement(found) if (char == "P") != negated else found
        if char in "swdhSWDH":
            found = unicode.named("\\" + char.lower())
            assert found is not None
            return found if char.islower() else unicode.complement(found)
        if char in ESCAPES:
            return ESCAPES[char]
        if char in "xu":
            digits = 2 if char == "x" else 4
            if self.take("{"):
                digits = self.text.find("}", self.at) - self.at
            code = self.text[self.at : self.at + max(digits, 0)]
            try:
                value = chr(int(code, 16))
            except (ValueError, OverflowError):
                raise self.fail(f"\\{char}") from None
            self.at += digits
            self.take("}")
            return value
        if char.isalnum():
            raise self.fail(f"\\{char}")
        return char

    def bracket(self, fold: bool) -> Ranges:
        negated = self.take("^")
        sets: list[Ranges] = []
        first = True
        while first or not self.peek("]"):
            first = False
            if self.peek("[") or self.peek("&&"):
                raise self.fail("a nested or intersected class")
            start = self.escape() if self.take("\\") else self.next()
            if not isinstance(start, str):
                sets.append(start)
                cases = [any(a <= low and b >= low + 25 for a, b in start) for low in (65, 97)]
                if fold and cases[0] != cases[1]:
                    raise self.fail("a case-sensitive property under (?i)")
                continue
            stop = start
            if self.peek("-") and not self.peek("-]"):
                self.at += 1
                end = self.escape() if self.take("\\") else self.next()
                if not isinstance(end, str) or ord(end) < ord(start):
                    raise self.fail("a malformed class range")
                stop = end
            sets.append(((ord(start), ord(stop)),))
            if fold:
                if ord(stop) > 127:
                    raise self.fail("a case-insensitive non-ASCII class")
                sets += [unicode.folded(chr(p)) for p in range(ord(start), ord(stop) + 1) if chr(p).isalpha()]
        self.at += 1
        merged = unicode.union(sets)
        return unicode.complement(merged) if negated else merged


def parse(text: str) -> Node:
    """Parse a pattern. Raises TokenizerError that names what the matcher does not have."""
    try:
        node = Parser(text).parse()
    except RecursionError:
        raise TokenizerError(f"tokenizer.json: the pattern {text[:60]!r}… is nested too deeply.") from None
    if nullable(node):
        raise TokenizerError(f"tokenizer.json: the pattern {text!r} matches the empty string, which splits nothing.")
    return node


def exactly(text: str) -> Node:
    """The pattern that matches `text` itself."""
    return Sequence(tuple(Set(((ord(char), ord(char)),)) for char in text))
