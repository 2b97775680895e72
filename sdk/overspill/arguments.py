"""From what an app passes to one frozen :class:`~overspill.types.chat.Request`.

Anything that has no meaning raises ``InvalidRequest`` and names the parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypedDict, Unpack, cast, get_args

from overspill.errors import InvalidRequest
from overspill.turns import Messages, check_json, check_text, tool_of, turns_of
from overspill.typed import is_type, schema_of
from overspill.types.chat import Grammar, Privacy, Request, Sampling, Tool, ToolChoice
from overspill.types.embedding import EmbedRequest, Pooling


class RunOptions(TypedDict, total=False):
    """What a run of tools may set beside them; each name as in :class:`Request` and
    :class:`Sampling`."""

    model: str | None
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repeat_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | Sequence[str]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    response_format: Mapping[str, Any] | None
    top_logprobs: int | None
    privacy: Privacy | str
    deadline_s: float | None
    first_token_s: float | None
    adapter: str | None
    draft: str
    redact: bool


class CallOptions(RunOptions, total=False):
    """What a call may set beside ``output``."""

    tools: Sequence[Tool | Mapping[str, Any]]


class Options(CallOptions, total=False):
    """All that a call may set. ``output`` is what the answer is read as: a type, a JSON schema, or
    a grammar, which leaves it text."""

    output: Any


_KNOWN = (*RunOptions.__annotations__, "tools", "output")
_SAMPLING = frozenset(f.name for f in fields(Sampling))
_INT32, _INT64 = 2**31 - 1, 2**63
_MOST_BIAS = 1e6  # more than any logit, and a float32 on every engine
_IN_WORDS = {str: "text", int: "a whole number", (int, float): "a number"}
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("model", "adapter", "draft"), str),
    **dict.fromkeys(("max_tokens", "top_k", "seed", "top_logprobs", "dimensions"), int),
    **dict.fromkeys(
        (
            "temperature",
            "top_p",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repeat_penalty",
            "deadline_s",
            "first_token_s",
        ),
        (int, float),
    ),
}
_OPTIONAL = frozenset(
    {"model", "max_tokens", "seed", "top_logprobs", "deadline_s", "first_token_s", "adapter"}
    | {"dimensions"}
)
_PASSED_ON = frozenset(
    {"model", "max_tokens", "top_logprobs", "deadline_s", "first_token_s", "adapter", "draft"}
    | {"redact"}
)


def build_embedding(
    texts: str | Sequence[str],
    *,
    app: str,
    pooling: Pooling,
    normalize: bool,
    dimensions: int | None,
) -> EmbedRequest:
    """The request for embeddings; raises ``InvalidRequest`` for what is no text."""
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable):
        raise InvalidRequest(
            f"'texts' is of the type {type(texts).__name__}.",
            param="texts",
            mend="Give a text, or a list of texts.",
        )
    found = (texts,) if isinstance(texts, str) else tuple(texts)
    for text in found:
        check_text(text, "texts")
    _check_types({"dimensions": dimensions, "normalize": normalize})
    return EmbedRequest(found, app=app, pooling=pooling, normalize=normalize, dimensions=dimensions)


def build_request(
    messages: Messages, *, app: str, floor: Privacy, **options: Unpack[Options]
) -> Request:
    """One request. ``floor`` is the session's; an option may only raise it."""
    given: dict[str, Any] = {k: v for k, v in options.items() if k in _PASSED_ON}
    check_names(options)
    _check_types(options)
    _check_bias(options.get("logit_bias", {}))
    tool_choice, tool_name = _tool_choice(options.get("tool_choice", "auto"))
    json_schema, grammar = _output(options.get("output"), options.get("response_format"))
    stop = options.get("stop", ())
    request = Request(
        messages=turns_of(messages),
        app=app,
        cache_scope="app",
        sampling=Sampling(**{k: v for k, v in options.items() if k in _SAMPLING}),  # type: ignore[arg-type]  # narrowed by _SAMPLING
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        tools=tuple(map(tool_of, _listed(options.get("tools", ()), "tools"))),
        tool_choice=tool_choice,
        tool_name=tool_name,
        json_schema=json_schema,
        grammar=grammar,
        parallel_tool_calls=options.get("parallel_tool_calls", True),
        privacy=floor.tightened_by(_privacy(options.get("privacy", floor))),
        **given,
    )
    check_ranges(request)
    return request


def check_count(value: object, param: str, *, least: int = 1) -> None:
    """Raise ``InvalidRequest`` for what is no whole number from ``least`` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidRequest(
            f"'{param}' is {value!r:.40}.",
            param=param,
            mend=f"Give a whole number, {least} or more.",
        )


def check_names(options: Iterable[str]) -> None:
    """Raise ``InvalidRequest`` for an option that there is not."""
    unknown = set(options) - set(_KNOWN)
    if unknown:
        raise InvalidRequest(
            f"Unknown option '{min(unknown)}'.",
            param=min(unknown),
            mend=f"Known: {', '.join(_KNOWN)}.",
        )


def _check_types(options: Mapping[str, Any]) -> None:
    """Raise ``InvalidRequest`` for a value of a type that the option cannot have."""
    for name, value in options.items():
        wanted = _TYPES.get(name)
        if value is None and name in _OPTIONAL:
            continue
        # bool is an int to Python, and `max_tokens=True` is a mistake.
        if wanted and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise InvalidRequest(
                f"'{name}' is {value!r:.80}.", param=name, mend=f"Give {_IN_WORDS[wanted]}."
            )
    for name in ("parallel_tool_calls", "redact", "normalize"):
        if not isinstance(options.get(name, True), bool):
            raise InvalidRequest(f"'{name}' is no truth value.", param=name)
    for name in ("model", "adapter", "draft"):
        check_text(options.get(name) or "", name)
    for text in _texts(options.get("stop", ())):
        check_text(text, "stop")


def _check_bias(bias: object) -> None:
    """Raise ``InvalidRequest`` for what does not map token ids to numbers; which tokens there are
    is the model's to say."""
    if not isinstance(bias, Mapping):
        raise InvalidRequest(
            f"'logit_bias' is {bias!r:.80}.",
            param="logit_bias",
            mend="Give a number for each token id.",
        )
    for token, value in bias.items():
        right = all(not isinstance(one, bool) for one in (token, value))
        if not (right and isinstance(token, int) and isinstance(value, int | float)):
            raise InvalidRequest(
                f"'logit_bias' gives {token!r:.40} the bias {value!r:.40}.",
                param="logit_bias",
                mend="Token ids are whole numbers, and a bias is a number.",
            )
        if abs(token) > _INT32 or not abs(value) <= _MOST_BIAS:
            raise InvalidRequest(
                f"'logit_bias' gives {token!r:.40} the bias {value!r:.40}.",
                param="logit_bias",
                mend=f"Tokens go up to 2^31 and a bias from -{_MOST_BIAS:g} to {_MOST_BIAS:g}.",
            )


def _listed(value: Any, param: str) -> Iterable[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidRequest(
            f"'{param}' is of the type {type(value).__name__}.", param=param, mend="Give a list."
        )
    return value


def _texts(stop: object) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,)
    texts = tuple(stop) if isinstance(stop, Iterable) else (stop,)
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("'stop' holds something that is no text.", param="stop")
    return texts


def check_ranges(request: Request) -> None:
    """Raise ``InvalidRequest`` for numbers that no engine could honour."""
    s = request.sampling
    checks: tuple[tuple[str, bool, str], ...] = (
        ("temperature", 0 <= s.temperature <= 2, "between 0 and 2"),
        ("top_p", 0 < s.top_p <= 1, "above 0 and at most 1"),
        ("min_p", 0 <= s.min_p <= 1, "between 0 and 1"),
        ("top_k", 0 <= s.top_k <= _INT32, "0 or more, and less than 2^31"),
        ("seed", s.seed is None or -_INT64 <= s.seed < _INT64, "a 64-bit integer"),
        ("presence_penalty", -2 <= s.presence_penalty <= 2, "between -2 and 2"),
        ("frequency_penalty", -2 <= s.frequency_penalty <= 2, "between -2 and 2"),
        ("repeat_penalty", s.repeat_penalty > 0, "above 0"),
        (
            "max_tokens",
            request.max_tokens is None or 1 <= request.max_tokens <= _INT32,
            "1 or more, and less than 2^31",
        ),
        ("top_logprobs", request.top_logprobs is None or 0 <= request.top_logprobs <= 20, "0-20"),
        ("deadline_s", request.deadline_s is None or request.deadline_s > 0, "above 0"),
        ("first_token_s", request.first_token_s is None or request.first_token_s > 0, "above 0"),
        ("stop", all(request.stop) and len(request.stop) <= 16, "up to 16 non-empty strings"),
    )
    for name, ok, allowed in checks:
        if not ok:
            raise InvalidRequest(f"'{name}' is out of range.", param=name, mend=f"Use {allowed}.")


def _output(output: Any, response_format: Any) -> tuple[Mapping[str, Any] | None, Grammar | None]:
    """What the answer's text is held to: a schema or a grammar, or neither."""
    if output is not None and response_format is not None:
        raise InvalidRequest(
            "'output' and 'response_format' say the same thing.",
            param="response_format",
            mend="Give one of them.",
        )
    if response_format is not None:
        return _response_schema(response_format), None
    if isinstance(output, Grammar):
        return None, _checked_grammar(output)
    if output is None:
        return None, None
    if isinstance(output, Mapping):
        check_json(output, "'output'", "output")
        return output, None
    if is_type(output):
        return schema_of(output), None
    raise InvalidRequest(
        f"'output' is of the type {type(output).__name__}.",
        param="output",
        mend="Give a pydantic model, a dataclass, a TypedDict, a JSON schema or a Grammar.",
    )


def _checked_grammar(grammar: Grammar) -> Grammar:
    check_text(grammar.text, "output")
    if grammar.syntax not in ("regex", "lark"):
        raise InvalidRequest(
            f"A grammar has the syntax {grammar.syntax!r}.",
            param="output",
            mend="Use regex or lark.",
        )
    return grammar


def _response_schema(form: Any) -> Mapping[str, Any] | None:
    """The schema of OpenAI's ``response_format``."""
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    named = form.get("json_schema") if kind == "json_schema" else None
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if not isinstance(schema, Mapping):
        raise InvalidRequest(
            "'response_format' is none of the known forms.",
            param="response_format",
            mend='Use {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}, '
            '{"type": "json_object"} or {"type": "text"}.',
        )
    check_json(schema, "The schema of 'response_format'", "response_format")
    return schema


def _tool_choice(choice: str | Mapping[str, Any]) -> tuple[ToolChoice, str | None]:
    if isinstance(choice, Mapping):
        function = choice.get("function", choice)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str):
            raise InvalidRequest("'tool_choice' names no function.", param="tool_choice")
        return "required", name
    if choice not in get_args(ToolChoice):
        raise InvalidRequest(
            f"'tool_choice' is {choice!r}.",
            param="tool_choice",
            mend="Use auto, none, required or a named function.",
        )
    return cast(ToolChoice, choice), None


def _privacy(value: Privacy | str) -> Privacy:
    try:
        return Privacy(value)
    except ValueError:
        raise InvalidRequest(
            f"'privacy' is {value!r}.", param="privacy", mend="Use device, attested or any."
        ) from None
