"""Compiles a Jinja2 chat template to chat.bin (runtime_c/FORMAT.md has every byte).

Jinja2's own parser reads the template, set up as transformers sets it up; its syntax tree becomes nodes that refer to
earlier nodes. There is no per-family code: what the board cannot do is a TemplateError with the construct and line.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

import jinja2
import jinja2.ext
from jinja2 import nodes

from .errors import TemplateError

MAGIC = b"ELLMCHT1"
NONE = 0xFFFFFFFF
MOST_ARGUMENTS = 16

# The order of these names is the format.
OPS = """_ none true false int float string name list tuple dict attribute item slice and or not negative positive
add subtract multiply divide floor_divide modulo power concatenate compare choose filter test method call function
capture text print if for set unpack set_attribute macro scope break continue block""".split()
OP = {name: index for index, name in enumerate(OPS)}
FILTERS = """trim tojson length upper lower title capitalize join default first last list items map_attribute map select
reject selectattr rejectattr string safe int float replace reverse abs indent unique sort dictsort sum
min max""".split()
FILTER_ALIASES = {"count": "length", "d": "default", "map": "map"}
TESTS = """defined undefined string mapping iterable sequence none number integer float boolean true false odd even
divisibleby eq ne lt le gt ge in callable""".split()
TEST_ALIASES = {"equalto": "eq", "==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
TEST_ALIASES |= {"lessthan": "lt", "greaterthan": "gt"}
METHODS = """strip lstrip rstrip split rsplit startswith endswith replace upper lower title capitalize find count items
keys values get join splitlines cycle index removeprefix removesuffix isdigit copy""".split()
FUNCTIONS = "raise_exception strftime_now namespace range dict".split()
COMPARISONS = "eq ne lt le gt ge in notin".replace("le", "lteq").replace("ge", "gteq").split()
BINARY: dict[type[nodes.BinExpr], str] = {
    nodes.And: "and",
    nodes.Or: "or",
    nodes.Add: "add",
    nodes.Sub: "subtract",
    nodes.Mul: "multiply",
    nodes.Div: "divide",
    nodes.FloorDiv: "floor_divide",
    nodes.Mod: "modulo",
    nodes.Pow: "power",
}


class Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what an assistant wrote, renders as its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def is_safe(node: nodes.Expr) -> bool:
    """Whether a value is of jinja2's Markup, as far as its expression shows: what is added to it gets escaped."""
    return isinstance(node, nodes.Filter) and node.name in ("safe", "escape", "e", "forceescape")


class Compiler:
    """Nodes and strings of one template."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self.strings: dict[str, int] = {}
        self.assigned: set[str] = set()
        self.cases: set[str] = set()

    def string(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings))

    def node(self, line: int, op: str, *operands: int) -> int:
        at = len(self.words)
        if len(operands) > 0xFFFF:
            raise TemplateError(f"chat template, line {line}: {len(operands)} items in one place; at most 65535.")
        self.words += [OP[op] | len(operands) << 8, line, *operands]
        return at

    def fail(self, node: nodes.Node, construct: str) -> TemplateError:
        return TemplateError(
            f"chat template, line {node.lineno}: {construct} is not supported on the board. Write the template "
            "without it, or extend crosscompile/template.py and runtime_c/src/template*.c."
        )

    # ---- expressions ----

    def expression(self, node: nodes.Node) -> int:
        if type(node) in BINARY:
            assert isinstance(node, nodes.BinExpr)
            if isinstance(node, nodes.Add) and any(is_safe(part) for part in (node.left, node.right)):
                raise self.fail(node, "adding to `safe` text, which escapes the rest as HTML,")
            return self.node(node.lineno, BINARY[type(node)], self.expression(node.left), self.expression(node.right))
        handler: Callable[[nodes.Node], int] | None = getattr(self, f"on_{type(node).__name__.lower()}", None)
        if handler is None:
            raise self.fail(node, f"the expression {type(node).__name__}")
        return handler(node)

    def optional(self, node: nodes.Node | None) -> int:
        return NONE if node is None else self.expression(node)

    def on_const(self, node: nodes.Const) -> int:
        return self.constant(node, node.value)

    def constant(self, node: nodes.Node, value: object) -> int:
        if value is None or isinstance(value, bool):
            return self.node(node.lineno, "none" if value is None else "true" if value else "false")
        if isinstance(value, int):
            if not -(1 << 63) <= value < 1 << 63:
                raise self.fail(node, "an integer of more than 64 bits")
            return self.node(node.lineno, "int", *struct.unpack("<II", struct.pack("<q", value)))
        if isinstance(value, float):
            return self.node(node.lineno, "float", *struct.unpack("<II", struct.pack("<d", value)))
        if isinstance(value, str):
            return self.node(node.lineno, "string", self.string(value))
        raise self.fail(node, f"a constant of type {type(value).__name__}")

    def on_templatedata(self, node: nodes.TemplateData) -> int:
        return self.constant(node, node.data)

    def on_name(self, node: nodes.Name) -> int:
        return self.node(node.lineno, "name", self.string(node.name))

    def on_list(self, node: nodes.List) -> int:
        return self.node(node.lineno, "list", *[self.expression(item) for item in node.items])

    def on_tuple(self, node: nodes.Tuple) -> int:
        return self.node(node.lineno, "tuple", *[self.expression(item) for item in node.items])

    def on_dict(self, node: nodes.Dict) -> int:
        pairs = [self.expression(part) for pair in node.items for part in (pair.key, pair.value)]
        return self.node(node.lineno, "dict", *pairs)

    def on_getattr(self, node: nodes.Getattr) -> int:
        return self.node(node.lineno, "attribute", self.expression(node.node), self.string(node.attr))

    def on_getitem(self, node: nodes.Getitem) -> int:
        value = self.expression(node.node)
        if isinstance(node.arg, nodes.Slice):
            parts = [self.optional(part) for part in (node.arg.start, node.arg.stop, node.arg.step)]
            return self.node(node.lineno, "slice", value, *parts)
        return self.node(node.lineno, "item", value, self.expression(node.arg))

    def on_not(self, node: nodes.Not) -> int:
        return self.node(node.lineno, "not", self.expression(node.node))

    def on_neg(self, node: nodes.Neg) -> int:
        return self.node(node.lineno, "negative", self.expression(node.node))

    def on_pos(self, node: nodes.Pos) -> int:
        return self.node(node.lineno, "positive", self.expression(node.node))

    def on_concat(self, node: nodes.Concat) -> int:
        return self.node(node.lineno, "concatenate", *[self.expression(part) for part in node.nodes])

    def on_compare(self, node: nodes.Compare) -> int:
        first = self.expression(node.expr)
        rest = [value for part in node.ops for value in (COMPARISONS.index(part.op), self.expression(part.expr))]
        return self.node(node.lineno, "compare", first, *rest)

    def on_condexpr(self, node: nodes.CondExpr) -> int:
        parts = (self.expression(node.test), self.expression(node.expr1), self.optional(node.expr2))
        return self.node(node.lineno, "choose", *parts)

    def arguments(self, node: nodes.Call | nodes.Filter | nodes.Test) -> list[int]:
        """(name or NONE, expression) of each argument."""
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise self.fail(node, "a call with *arguments or **arguments")
        result = [value for item in node.args for value in (NONE, self.expression(item))]
        result += [
            value
            for item in node.kwargs
            if isinstance(item, nodes.Keyword)
            for value in (self.string(item.key), self.expression(item.value))
        ]
        if len(result) > 2 * MOST_ARGUMENTS:
            raise self.fail(node, f"a call with more than {MOST_ARGUMENTS} arguments")
        return result

    def filter_id(self, node: nodes.Node, name: str) -> int:
        name = FILTER_ALIASES.get(name, name)
        if name not in FILTERS:
            raise self.fail(node, f"the filter {name!r}")
        self.note_case(name)
        return FILTERS.index(name)

    def test_id(self, node: nodes.Node, name: str) -> int:
        name = TEST_ALIASES.get(name, name)
        if name not in TESTS:
            raise self.fail(node, f"the test {name!r}")
        return TESTS.index(name)

    def note_case(self, name: str) -> None:
        if name in ("upper", "lower", "title", "capitalize"):
            self.cases |= {"upper", "lower"} if name in ("title", "capitalize") else {name}

    def filtered(self, node: nodes.Filter, value: int) -> int:
        name = node.name
        position = {"map": 0, "select": 0, "reject": 0, "selectattr": 1, "rejectattr": 1}.get(name)
        if position is None:
            return self.node(node.lineno, "filter", self.filter_id(node, name), value, *self.arguments(node))
        if name == "map" and not node.args:
            return self.node(node.lineno, "filter", FILTERS.index("map_attribute"), value, *self.arguments(node))
        # The name of the inner filter or test becomes its number.
        inner = self.filter_id if name == "map" else self.test_id
        arguments = list(node.args)
        if len(arguments) > position:
            constant = arguments[position]
            if not isinstance(constant, nodes.Const) or not isinstance(constant.value, str):
                raise self.fail(node, f"the filter {name!r} with a computed name")
            number = inner(node, constant.value)
            arguments[position] = nodes.Const(number, lineno=node.lineno)
        copy = nodes.Filter(node.node, name, arguments, node.kwargs, None, None, lineno=node.lineno)
        return self.node(node.lineno, "filter", FILTERS.index(name), value, *self.arguments(copy))

    def on_filter(self, node: nodes.Filter) -> int:
        if node.node is None:
            raise self.fail(node, "a filter block inside an expression")
        return self.filtered(node, self.expression(node.node))

    def on_test(self, node: nodes.Test) -> int:
        asked = node.node
        is_function = isinstance(asked, nodes.Name) and asked.name in FUNCTIONS and asked.name not in self.assigned
        if is_function and node.name in ("defined", "undefined"):
            # Functions are no values on the board, but templates ask whether there is one: strftime_now is defined.
            return self.constant(node, node.name == "defined")
        number = self.test_id(node, node.name)
        return self.node(node.lineno, "test", number, self.expression(node.node), *self.arguments(node))

    def on_call(self, node: nodes.Call) -> int:
        callee = node.node
        if isinstance(callee, nodes.Getattr):
            if callee.attr not in METHODS:
                raise self.fail(node, f"the method .{callee.attr}()")
            self.note_case(callee.attr)
            value = self.expression(callee.node)
            return self.node(node.lineno, "method", METHODS.index(callee.attr), value, *self.arguments(node))
        if isinstance(callee, nodes.Name) and callee.name not in self.assigned:
            if callee.name not in FUNCTIONS:
                raise self.fail(node, f"the function {callee.name}()")
            return self.node(node.lineno, "function", FUNCTIONS.index(callee.name), *self.arguments(node))
        return self.node(node.lineno, "call", self.expression(callee), *self.arguments(node))

    # ---- statements ----

    def block(self, body: Sequence[nodes.Node], line: int) -> int:
        return self.node(line, "block", *[part for node in body for part in self.statement(node)])

    def statement(self, node: nodes.Node) -> list[int]:
        handler: Callable[[nodes.Node], list[int]] | None
        handler = getattr(self, f"do_{type(node).__name__.lower()}", None)
        if handler is None:
            raise self.fail(node, f"the statement {type(node).__name__}")
        return handler(node)

    def do_output(self, node: nodes.Output) -> list[int]:
        parts = []
        for part in node.nodes:
            if isinstance(part, nodes.TemplateData):
                parts.append(self.node(part.lineno, "text", self.string(part.data)))
            else:
                parts.append(self.node(part.lineno, "print", self.expression(part)))
        return parts

    def do_if(self, node: nodes.If) -> list[int]:
        test, then = self.expression(node.test), self.block(node.body, node.lineno)
        # elif is an if in the else branch; compiled from the last one backwards.
        tail = self.block(node.else_, node.lineno) if node.else_ else NONE
        for branch in reversed(node.elif_):
            parts = (self.expression(branch.test), self.block(branch.body, branch.lineno), tail)
            tail = self.node(branch.lineno, "if", *parts)
        return [self.node(node.lineno, "if", test, then, tail)]

    def names(self, target: nodes.Node) -> list[int]:
        items = target.items if isinstance(target, nodes.Tuple) else [target]
        result = []
        for item in items:
            if not isinstance(item, nodes.Name):
                raise self.fail(target, "a nested assignment target")
            result.append(self.string(item.name))
        return result

    def do_for(self, node: nodes.For) -> list[int]:
        if node.recursive:
            raise self.fail(node, "a recursive loop")
        names = self.names(node.target)
        unpacks = int(isinstance(node.target, nodes.Tuple))
        iterable, test = self.expression(node.iter), self.optional(node.test)
        body = self.block(node.body, node.lineno)
        other = self.block(node.else_, node.lineno) if node.else_ else NONE
        return [self.node(node.lineno, "for", iterable, test, body, other, unpacks, *names)]

    def assign(self, node: nodes.Node, target: nodes.Node, value: int) -> int:
        if isinstance(target, nodes.NSRef):
            if target.attr.startswith("_"):
                raise self.fail(node, "a namespace attribute that starts with an underscore")
            return self.node(node.lineno, "set_attribute", self.string(target.name), self.string(target.attr), value)
        if isinstance(target, nodes.Tuple):
            return self.node(node.lineno, "unpack", value, *self.names(target))
        return self.node(node.lineno, "set", *self.names(target), value)

    def do_assign(self, node: nodes.Assign) -> list[int]:
        return [self.assign(node, node.target, self.expression(node.node))]

    def captured(self, node: nodes.AssignBlock | nodes.FilterBlock) -> int:
        value = self.node(node.lineno, "capture", self.block(node.body, node.lineno))
        chain: list[nodes.Filter] = []
        step: nodes.Expr | None = node.filter
        while isinstance(step, nodes.Filter):
            chain.append(step)
            step = step.node
        for link in reversed(chain):
            value = self.filtered(link, value)
        return value

    def do_assignblock(self, node: nodes.AssignBlock) -> list[int]:
        return [self.assign(node, node.target, self.captured(node))]

    def do_filterblock(self, node: nodes.FilterBlock) -> list[int]:
        return [self.node(node.lineno, "print", self.captured(node))]

    def do_macro(self, node: nodes.Macro) -> list[int]:
        body = self.block(node.body, node.lineno)
        n_required = len(node.args) - len(node.defaults)
        parameters = []
        for index, parameter in enumerate(node.args):
            default = node.defaults[index - n_required] if index >= n_required else None
            parameters += [self.string(parameter.name), self.optional(default)]
        if len(node.args) > MOST_ARGUMENTS:
            raise self.fail(node, f"a macro with more than {MOST_ARGUMENTS} parameters")
        for name in node.find_all(nodes.Name):
            if name.name in ("caller", "varargs", "kwargs"):
                raise self.fail(node, f"{name.name} in a macro")
        return [self.node(node.lineno, "macro", self.string(node.name), body, *parameters)]

    def do_scope(self, node: nodes.Scope) -> list[int]:
        return [self.node(node.lineno, "scope", self.block(node.body, node.lineno))]

    def do_with(self, node: nodes.With) -> list[int]:
        if len(node.targets) > 1:
            raise self.fail(node, "`with` of more than one variable")
        parts = [
            self.assign(node, target, self.expression(value))
            for target, value in zip(node.targets, node.values, strict=True)
        ]
        body = self.block(node.body, node.lineno)
        return [self.node(node.lineno, "scope", self.node(node.lineno, "block", *parts, body))]

    def do_break(self, node: nodes.Break) -> list[int]:
        return [self.node(node.lineno, "break")]

    def do_continue(self, node: nodes.Continue) -> list[int]:
        return [self.node(node.lineno, "continue")]


def case_map(name: str) -> list[int]:
    """(code point, up to three images, 0-padded) of str.upper or str.lower beyond ASCII, ascending."""
    result: list[int] = []
    for point in range(0x80, 0x20000):
        if 0xD800 <= point < 0xE000:
            continue
        image = chr(point).upper() if name == "upper" else chr(point).lower()
        if image != chr(point):
            result += [point, *[ord(char) for char in image], *[0] * (3 - len(image))]
    return result


def parse(source: str) -> nodes.Template:
    """Jinja2's syntax tree of a chat template, with the options of transformers."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    try:
        return environment.parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"chat template, line {error.lineno}: {error.message}. This is not valid Jinja2; correct the template."
        ) from error
    except RecursionError:
        raise TemplateError("chat template: nested too deeply. Simplify it.") from None


def compile_template(source: str, tokens: Mapping[str, str]) -> bytes:
    """Compile a chat template to the bytes of chat.bin.

    tokens: variables with fixed text, such as bos_token and eos_token.
    Raises TemplateError that names the construct and line the board cannot run.
    """
    tree = parse(source)
    compiler = Compiler()
    for name in tree.find_all(nodes.Name):
        if name.ctx != "load":
            compiler.assigned.add(name.name)
    compiler.assigned |= {macro.name for macro in tree.find_all(nodes.Macro)}
    try:
        root = compiler.block(tree.body, 1)
    except RecursionError:
        raise TemplateError("chat template: nested too deeply. Simplify it.") from None
    variables = [
        value for name, text in tokens.items() for value in (compiler.string(name), compiler.string(str(text)))
    ]
    entries: list[int] = []
    data = b""
    for text in compiler.strings:
        encoded = text.encode("utf-8", "replace")
        entries += [len(data), len(encoded)]
        data += encoded
    cases = [case_map(name) if name in compiler.cases else [] for name in ("upper", "lower")]
    sections = [struct.pack(f"<{len(part)}I", *part) for part in (compiler.words, entries, variables, *cases)]
    sections.append(data)
    offset = 24 + 8 * len(sections)
    table = b""
    for section in sections:
        table += struct.pack("<II", offset, len(section))
        offset += len(section) + -len(section) % 8
    header = MAGIC + struct.pack("<4I", offset, 1, root, 0)
    return header + table + b"".join(section + bytes(-len(section) % 8) for section in sections)
