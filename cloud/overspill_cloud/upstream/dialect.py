"""How each kind of upstream is spoken to, beyond OpenAI's protocol, and what none can promise.

Everything that a server would fill in by itself is said: vLLM and SGLang take sampling defaults
from a model's ``generation_config.json``, llama-server has its own (top-k 40, min-p 0.05).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from overspill.errors import UnsupportedOption
from overspill.providers.openai_body import chat_body
from overspill.types.chat import Request

_NOTES: Final = (
    "runs in an upstream server: what it loaded is not measured by loading it here",
    "a draft that rides along is not checked, and changes nothing",
    "seeds are the upstream's own: a continuation elsewhere draws anew",
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """``spoken`` are options that ``words`` puts into the body. ``logprobs``: they come with token
    ids. ``unshared``: it is told to keep each request's computed prompt to itself. ``counter``:
    the path that counts a prompt's tokens, if there is one."""

    name: str
    spoken: frozenset[str]
    words: Callable[[Request], Mapping[str, Any]]
    counter: str | None = None
    logprobs: bool = False
    unshared: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What its user has to know."""
        if self.unshared:
            return _NOTES
        return (*_NOTES, "may share computed prompts between requests: no cache per app")

    def body(self, request: Request, model: str, who: str) -> dict[str, Any]:
        """The body of a streamed completion. Raises ``UnsupportedOption`` by the option's name."""
        _refuse(request, who)
        body = chat_body(request, model, who=who, spoken=self.spoken)
        body["top_p"] = request.sampling.top_p
        body |= self.words(request)
        if request.prefix:
            body["messages"].append({"role": "assistant", "content": request.prefix})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return _only_the_named_tool(body, request)


def _refuse(request: Request, who: str) -> None:
    if request.watch is not None:
        raise _unsupported(who, "watch", "Leave it out: only a local engine gives signals.")
    forced = request.tool_choice == "required" or request.tool_name is not None
    if request.offers_tools and not forced and any(tool.strict for tool in request.tools):
        raise _unsupported(who, "tools", "Leave out strict, or force the call.")


def _unsupported(who: str, option: str, mend: str) -> UnsupportedOption:
    return UnsupportedOption(f"{who} cannot honour {option}.", param=option, mend=mend)


def _only_the_named_tool(body: dict[str, Any], request: Request) -> dict[str, Any]:
    """A named tool as the only one, and required: llama-server has no word for a name."""
    if request.tool_name is not None:
        named = [t for t in body["tools"] if t["function"]["name"] == request.tool_name]
        body |= {"tools": named, "tool_choice": "required"}
    return body


def _llama_server(request: Request) -> Mapping[str, Any]:
    sampling = request.sampling
    words: dict[str, Any] = {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "cache_prompt": False,
    }
    if sampling.logit_bias:
        words["logit_bias"] = [[token, bias] for token, bias in sampling.logit_bias.items()]
    if request.top_logprobs is not None:
        # 0 would give none at all, not even the chosen token's.
        words |= {"logprobs": True, "top_logprobs": max(1, request.top_logprobs)}
    return words


def _vllm(request: Request) -> Mapping[str, Any]:
    # A salt of the request's own keeps its blocks of the prefix cache from every other one.
    return _sglang(request) | {"cache_salt": request.id}


def _sglang(request: Request) -> dict[str, Any]:
    sampling = request.sampling
    words: dict[str, Any] = {
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repeat_penalty,
    }
    if sampling.logit_bias:
        words["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return words


def _plain(request: Request) -> Mapping[str, Any]:
    return {}


_FILTERS: Final = frozenset({"top_k", "min_p", "repeat_penalty", "logit_bias", "prefix"})
LLAMA_SERVER: Final = Dialect(
    "llama-server",
    _FILTERS | {"top_logprobs"},
    _llama_server,
    counter="/v1/chat/completions/input_tokens",
    logprobs=True,
    unshared=True,
)
VLLM: Final = Dialect("vllm", _FILTERS, _vllm, counter="/tokenize", unshared=True)
SGLANG: Final = Dialect("sglang", _FILTERS, _sglang)
PLAIN: Final = Dialect("openai", frozenset(), _plain)

BY_OWNER: Final[Mapping[str, Dialect]] = {
    "llamacpp": LLAMA_SERVER,
    "vllm": VLLM,
    "sglang": SGLANG,
}
"""By ``owned_by`` in the answer of ``/v1/models``."""
