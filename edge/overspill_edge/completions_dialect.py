"""OpenAI's completions request, as one of ours: a prompt that is continued without a template.

Every parameter that the dialect defines is honoured, or harmless and passed over, or refused by
name with 400. One prompt is answered for a request; token ids are refused: they are another
vocabulary's.

Source: the API reference of ``POST /v1/completions`` and the types of ``openai`` 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from overspill.types.chat import Message, Request
from overspill_edge.body import Count, NonEmpty, Parameters, checked, unreadable
from overspill_edge.dialect import Source
from overspill_edge.openai_common import TextRequest

_PARAMETERS = Parameters(
    passed_over=frozenset(("user",)),
    refused={
        "best_of": "Ask for one.",
        "echo": "Leave it out: the prompt is yours already.",
        "n": "Ask again for another answer.",
        "suffix": "Write the prompt as the model's own template for filling in has it.",
    },
    harmless={"best_of": (1,), "echo": (False,), "n": (1,), "suffix": ("",)},
)
NAMES: Mapping[str, str] = {
    "messages": "prompt",
    "top_logprobs": "logprobs",
    "grammar": "overspill.grammar",
    "adapter": "overspill.adapter",
}
"""The dialect's names for parameters that an engine refuses by ours."""


def _one_prompt(prompt: Any) -> Any:
    if not isinstance(prompt, list):
        return prompt
    if any(isinstance(item, int | list) for item in prompt):
        raise unreadable("Token ids are another model's; send the text itself")
    if len(prompt) != 1:
        raise unreadable("One prompt is answered for a request; ask again for each")
    return prompt[0]


class CompletionRequest(TextRequest):
    """The body, checked. Bounds are the dialect's."""

    prompt: Annotated[NonEmpty, BeforeValidator(_one_prompt)]
    max_tokens: Count | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None


def parse_completion(body: bytes) -> CompletionRequest:
    """The body of a request, or ``InvalidRequest`` naming the parameter."""
    asked = checked(CompletionRequest, body, _PARAMETERS)
    asked.check_stream_options()
    return asked


DEFAULT_MAX_TOKENS = 16
"""The dialect's own."""


def completion_request(asked: CompletionRequest, source: Source) -> Request:
    """Our request. Without ``temperature`` an answer is greedy, as everywhere here."""
    return Request(
        messages=(Message("user", asked.prompt),),
        raw=True,
        max_tokens=asked.max_tokens or DEFAULT_MAX_TOKENS,
        sampling=asked.sampling(),
        stop=tuple(asked.stop or ()),
        top_logprobs=asked.logprobs,
        **asked.ours.common(source, asked.model),
    )
