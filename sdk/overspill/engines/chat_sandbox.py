"""Where a stranger's chat template runs: jinja2's immutable sandbox with a budget.

What makes texts longer is looked at before it does: operators, ``~``, captured blocks, filters and
methods, and what writes lists as text (``chat_bounds.py``). What only pads or repeats is left out;
no template of the known families uses it.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from overspill.engines import chat_bounds as bounds

_PADDING_FILTERS = frozenset(
    {"batch", "center", "pprint", "round", "slice", "sum", "urlize", "wordwrap", "xmlattr"}
)
_PADDING_METHODS = frozenset(
    {"center", "encode", "expandtabs", "ljust", "rjust", "to_bytes", "translate", "zfill"}
)
_TEXT_FILTERS = frozenset(
    {
        "capitalize", "e", "escape", "forceescape", "format", "indent", "lower", "replace", "safe",
        "string", "striptags", "title", "tojson", "trim", "truncate", "upper", "urlencode",
        "wordcount",
    }
)  # fmt: skip
"""Filters that write what they are given as text, whatever it is."""
_LIST_FILTERS = frozenset({"join", "list", "sort"})
_FINDING = frozenset(
    {"attr", "d", "default", "first", "get", "last", "max", "min", "pop", "random"}
)
"""Filters and methods that give what is there already: nothing is made."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox; what it compiles is rendered inside of ``chat_bounds.budget`` only.

    A template's own lists may grow and shrink at their end: Kimi K2's keeps its calls' ids so.
    ``filters`` come in addition to jinja2's own, or instead of them.
    """

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self, filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_finalize,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        )
        del self.globals["lipsum"]
        self.filters = {
            name: _bounded(name, made)
            for name, made in {**self.filters, **filters}.items()
            if name not in _PADDING_FILTERS
        }

    def compiled(self, source: str) -> jinja2.Template:
        """A template that counts its steps; raises as jinja2 does."""
        tree = _Counted(self).visit(self.parse(source))
        return jinja2.Template.from_code(self, self.compile(tree), dict(self.globals))

    @property
    def tick(self) -> str:
        """One step of a loop, a macro or a block: a name, since a call takes ten times as long."""
        bounds.step()
        return ""

    def write_together(self, *values: Any) -> str:
        """``a ~ b``."""
        bounds.spend(sum(map(bounds.weight, values)))
        return "".join(map(str, values))

    def part_of(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """``value[start:stop:step]``, a copy."""
        part = value[start:stop:step]
        bounds.spend(bounds.size(part))
        return part

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What macros and captured blocks end with."""
        parts = list(parts)
        bounds.spend(sum(map(len, parts)))
        return "".join(parts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """As jinja2 has it, without what pads; ``append`` and ``pop`` of lists are."""
        if isinstance(obj, str | int | float) and attr in _PADDING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value) or (
            type(obj) is list and attr in ("append", "pop")
        )

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        """The operators by which something grows."""
        if operator == "**":
            raise bounds.BudgetSpent
        if operator == "+":
            bounds.check_sum(left, right)
        elif operator == "*":
            bounds.check_product(left, right)
        elif isinstance(left, str):
            bounds.check_percent(left, right)
        return super().call_binop(context, operator, left, right)

    def call(
        self, context: jinja2.runtime.Context, called: Any, /, *args: Any, **kwargs: Any
    ) -> Any:
        """Methods by which texts grow are looked at before, what others made behind."""
        is_method = isinstance(called, types.BuiltinMethodType | types.MethodType)
        text = called.__self__ if is_method else None
        if isinstance(text, str) and args:
            args = _checked_method(called.__name__, text, args)
        made = super().call(context, called, *args, **kwargs)
        if isinstance(text, str) and isinstance(made, list):
            bounds.spend(len(text))
        if not (is_method and called.__name__ in _FINDING):
            bounds.spend(bounds.size(made))
        return made

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format``, its places looked at."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        @functools.wraps(formatted)
        def checked(*args: Any, **kwargs: Any) -> str:
            bounds.check_format(value.__self__, (args, kwargs))
            return formatted(*args, **kwargs)

        return checked


class _GenerationTag(Extension):
    """``{% generation %}``, by which transformers marks what a model is trained on: no effect."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Its body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Counted(NodeTransformer):
    """Puts a tick at the head of all that a template can repeat, and has what jinja2 computes by
    itself, ``~`` and slices, go by the sandbox.

    They go by the environment's names, which no variable of a template hides.
    """

    def __init__(self, environment: Sandbox) -> None:
        self._environment = environment

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """``a ~ b``."""
        self.generic_visit(node)
        return self._call("write_together", node.nodes, node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """``a[1:]``."""
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = (node.arg.start, node.arg.stop, node.arg.step)
        given = [self._placed(nodes.Const(None), node.lineno) if e is None else e for e in ends]
        return self._call("part_of", [node.node, *given], node.lineno)

    def visit_For(self, node: nodes.For) -> Any:
        """A loop; what its condition leaves out is looked at too."""
        if node.test is not None:
            ticked = self._placed(nodes.Not(nodes.EnvironmentAttribute("tick")), node.lineno)
            node.test = self._placed(nodes.And(ticked, node.test), node.lineno)
        return self._with_tick(node)

    def _with_tick(self, node: Any) -> Any:
        self.generic_visit(node)
        head = nodes.ExprStmt(nodes.EnvironmentAttribute("tick"))
        node.body.insert(0, self._placed(head, node.lineno))
        return node

    visit_Macro = visit_CallBlock = visit_Block = _with_tick

    def _call(self, name: str, arguments: list[nodes.Expr], lineno: int) -> nodes.Expr:
        function = nodes.EnvironmentAttribute(name)
        call: nodes.Expr = self._placed(nodes.Call(function, arguments, [], None, None), lineno)
        return call

    def _placed(self, node: nodes.Node, lineno: int) -> Any:
        return node.set_lineno(lineno).set_environment(self._environment)


def _finalize(value: Any) -> Any:
    """What is written out: a list is weighed before it becomes text."""
    bounds.weight(value)
    return value


def _bounded(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is looked at; it keeps jinja2's marks of what it is passed."""
    at = 1 if hasattr(made, "jinja_pass_arg") else 0

    @functools.wraps(made)
    def run(*args: Any, **kwargs: Any) -> Any:
        if len(args) > at:
            subject = _checked_filter(name, args[at], args[at + 1 :], kwargs)
            args = (*args[:at], subject, *args[at + 1 :])
        result = made(*args, **kwargs)
        if name not in _FINDING:
            bounds.spend(bounds.size(result))
        return result

    return run


def _checked_filter(
    name: str, subject: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What the filter is to be given, once what comes of it is within bounds."""
    if name in _LIST_FILTERS:
        subject = bounds.listed(subject)
    if name in _TEXT_FILTERS:
        bounds.weight(subject)
    if name == "join":
        bounds.check_joined(_argument(0, "d", args, kwargs, ""), subject)
    elif name == "replace":
        old, new = (_argument(at, key, args, kwargs, "") for at, key in enumerate(("old", "new")))
        bounds.check_replaced(str(subject), bounds.text_of(old), bounds.text_of(new))
    elif name == "indent":
        bounds.check_indented(str(subject), _argument(0, "width", args, kwargs, 4))
    elif name == "format":
        bounds.check_percent(str(subject), (args, kwargs))
    return subject


def _argument(
    at: int, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], default: Any
) -> Any:
    return args[at] if at < len(args) else kwargs.get(name, default)


def _checked_method(name: str, text: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A text method's arguments, once what comes of them is within bounds."""
    if name == "join":
        items = bounds.listed(args[0])
        bounds.check_joined(text, items)
        return (items, *args[1:])
    if name == "replace" and len(args) > 1:
        bounds.check_replaced(text, bounds.text_of(args[0]), bounds.text_of(args[1]))
    return args
