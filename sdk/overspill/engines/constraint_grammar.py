"""From what a request demands to one grammar in llguidance's Lark."""

from __future__ import annotations

from overspill.engines.constraint import need_llguidance
from overspill.engines.constraint_schema import schema_text
from overspill.errors import InvalidRequest
from overspill.types.chat import Grammar, Request


def request_grammar(request: Request) -> tuple[str, str] | None:
    """The grammar and the parameter that asked for it; None where the answer is free.

    Raises :class:`~overspill.errors.UnsupportedOption` and :class:`InvalidRequest`, naming the
    parameter, for what cannot be enforced.
    """
    if request.grammar is not None and request.json_schema is not None:
        raise InvalidRequest(
            "An answer can be held to a schema or to a grammar, not to both.",
            param="grammar",
            mend="Give one of them.",
        )
    if request.json_schema is not None:
        return f"start: %json {schema_text(request.json_schema, 'json_schema')}", "json_schema"
    if request.grammar is not None:
        return _users_grammar(request.grammar), "grammar"
    return None


def _users_grammar(grammar: Grammar) -> str:
    if grammar.syntax == "lark":
        return grammar.text
    need_llguidance()
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(grammar.text)
