"""From what a request demands to one grammar in llguidance's Lark.

An answer is either text, free or held to a schema or a grammar, or tool calls in the form that the
model's own family writes; where the model may think first, its thoughts are free.
"""

from __future__ import annotations

import json

from overspill.engines.answer_text import AnswerForm
from overspill.engines.constraint import need_llguidance
from overspill.engines.constraint_schema import schema_text
from overspill.engines.dialects.base import CallGrammar, literal
from overspill.engines.dialects.harmony import Harmony, analysis, final
from overspill.engines.reasoning import CLOSE, OPEN
from overspill.errors import InvalidRequest, UnsupportedOption
from overspill.types.chat import Grammar, Request, Tool

_TEXT = r"/(.|\n)*/"
_USERS = "users_grammar"


def request_grammar(request: Request, form: AnswerForm) -> tuple[str, str] | None:
    """The grammar and the parameter that asked for it; None where the answer is free.

    Raises :class:`UnsupportedOption` and :class:`InvalidRequest`, naming the parameter, for what
    cannot be enforced.
    """
    _check_together(request)
    if not request.needs_constraint or _ends_with_its_call(request, form):
        return None
    rules = _Rules(request, form)
    return rules.grammar(), rules.param


def _check_together(request: Request) -> None:
    if request.grammar is not None and request.json_schema is not None:
        raise InvalidRequest(
            "An answer can be held to a schema or to a grammar, not to both.",
            param="grammar",
            mend="Give one of them.",
        )
    names = [tool.name for tool in request.tools]
    if request.tool_name is not None and request.tool_name not in names:
        raise InvalidRequest(
            f"tool_choice names {request.tool_name!r:.80}, which is not among the tools.",
            param="tool_choice",
        )
    if request.tool_choice == "required" and not names:
        raise InvalidRequest(
            "tool_choice is 'required', but there are no tools.", param="tool_choice"
        )


def _ends_with_its_call(request: Request, form: AnswerForm) -> bool:
    """Whether only a single call at most is asked for, of a model whose call ends its turn."""
    return isinstance(form.dialect, Harmony) and not request.holds_content


class _Rules:
    """The rules of one request's grammar."""

    def __init__(self, request: Request, form: AnswerForm) -> None:
        self._request = request
        self._form = form
        self._forced = request.offers_tools and (
            request.tool_choice == "required" or request.tool_name is not None
        )
        self._rules: list[str] = []

    @property
    def param(self) -> str:
        """The parameter to blame."""
        if self._forced:
            return "tool_choice"
        if self._request.json_schema is not None:
            return "json_schema"
        return "grammar" if self._request.grammar is not None else "tools"

    def grammar(self) -> str:
        """The whole of it."""
        ways, thoughts = self._ways(), self._thoughts()
        lark = "\n".join([f"start: {thoughts}({' | '.join(ways)})", *self._rules])
        users = self._request.grammar
        if users is None or self._forced:
            return lark
        if ways == [f"@{_USERS}"] and not thoughts:
            return _users_lark(users)
        parts = {"answer": lark, _USERS: _users_lark(users)}
        named = [{"name": name, "lark_grammar": text} for name, text in parts.items()]
        return json.dumps({"grammars": named})

    def _ways(self) -> list[str]:
        """The alternatives of an answer."""
        calls = self._calls() if self._request.offers_tools else None
        if self._forced:
            if calls is None:
                raise AssertionError("a forced call without tools was refused before")
            return [_repeated(calls, self._many)]
        text = self._held_text()
        if text is not None:
            return [text] if calls is None else [text, _repeated(calls, self._many)]
        return self._free(calls) if calls is not None else [_TEXT]

    @property
    def _many(self) -> bool:
        return self._request.parallel_tool_calls and self._request.tool_name is None

    def _held_text(self) -> str | None:
        if self._request.json_schema is not None:
            text = f"%json {schema_text(self._request.json_schema, 'json_schema')}"
        elif self._request.grammar is not None:
            text = f"@{_USERS}"
        else:
            return None
        if isinstance(self._form.dialect, Harmony):
            return f"{final(self._quote)} {text}"
        return text

    def _free(self, calls: CallGrammar) -> list[str]:
        """Text and calls as the model likes; a call that it begins is held to its form."""
        if not calls.opening:
            self._rules.append(r"NO_CALL: /[^{ \n\t](.|\n)*/")
            return ["call_rest", "NO_CALL?"]
        if isinstance(self._form.dialect, Harmony):
            raise UnsupportedOption(
                "This model's calls can be forced, but not held to a schema where it is free to "
                "call or not.",
                param="tools",
                mend="Leave 'strict' out, or use tool_choice 'required'.",
            )
        begun = f"begun: {calls.begun}" if calls.begun else _until(calls.opening, rule="begun")
        self._rules.append(begun)
        if self._many and calls.repeats:
            return [f"(begun call_rest)* {_TEXT}"]
        return [f"begun call_rest {_WHITE}", _TEXT]

    def _calls(self) -> CallGrammar:
        dialect = self._form.dialect
        if dialect is None:
            raise UnsupportedOption(
                "This model's form of tool calls is not known here.",
                param="tools",
                mend="Leave the tools out, or use a model that was trained for them.",
            )
        tools = [
            tool for tool in self._request.tools if self._request.tool_name in (None, tool.name)
        ]
        schemas = [self._arguments(tool) for tool in tools]
        calls = dialect.grammar(tools, schemas, many=self._many, quote=self._quote)
        self._rules += calls.rules
        return calls

    def _arguments(self, tool: Tool) -> str:
        if self._forced or tool.strict:
            schema = {"type": "object", **tool.parameters}
            if schema["type"] != "object":
                raise InvalidRequest(
                    f"The parameters of the tool '{tool.name}' are no object.",
                    param="tools",
                    mend="Give a schema with the type 'object'.",
                )
            return schema_text(schema, f"tools/{tool.name}/parameters", param="tools")
        return schema_text({"type": "object"}, "tools", param="tools")

    def _thoughts(self) -> str:
        """What may, or has to, come before an answer that is held to something."""
        if isinstance(self._form.dialect, Harmony):
            before, close, after = analysis(self._quote)
            self._rules.append(_until(close))
            return f"({before} until_close {after})? "
        if not self._form.thinks or self._request.prefix:
            return ""
        self._rules.append(_until(self._quote(CLOSE)))
        if self._form.thinking_is_open:
            return f"until_close {_WHITE} "
        return f"({self._quote(OPEN)} until_close {_WHITE})? "

    def _quote(self, mark: str) -> str:
        token = self._form.token_of(mark)
        return literal(mark) if token is None else f"<[{token}]>"


_WHITE = r"/[ \n]{0,4}/"


def _repeated(calls: CallGrammar, many: bool) -> str:
    one = f"{calls.opening} call_rest"
    return f"{one} ({calls.between} {one})*" if many and calls.repeats else one


def _until(mark: str, rule: str = "until_close") -> str:
    """A rule for text up to the first ``mark``; only texts need to be told to stop there."""
    lazy = "" if mark.startswith("<") else "[lazy]"
    return f"{rule}{lazy}: {_TEXT} {mark}"


def _users_lark(grammar: Grammar) -> str:
    if grammar.syntax == "lark":
        return grammar.text
    need_llguidance()
    from llguidance import LLMatcher

    (only,) = json.loads(LLMatcher.grammar_from_regex(grammar.text))["grammars"]
    return str(only["lark_grammar"])
