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

from overspill.errors import InvalidRequest
from overspill.types.chat import Message, Request, Sampling
from overspill_edge.body import Count, NonEmpty, Parameters, Strict, checked, unreadable
from overspill_edge.dialect import OverspillOptions, Source
from overspill_edge.openai_dialect import Penalty, Stops, StreamOptions, TokenId

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


class CompletionRequest(Strict):
    """The body, checked. Bounds are the dialect's."""

    model: NonEmpty
    prompt: Annotated[NonEmpty, BeforeValidator(_one_prompt)]
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stops | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    overspill: OverspillOptions | None = None

    @property
    def include_usage(self) -> bool:
        """True where the stream is to end with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def parse_completion(body: bytes) -> CompletionRequest:
    """The body of a request, or ``InvalidRequest`` naming the parameter."""
    asked = checked(CompletionRequest, body, _PARAMETERS)
    if asked.stream_options is not None and not asked.stream:
        raise InvalidRequest("'stream_options' is for streams.", param="stream_options")
    return asked


DEFAULT_MAX_TOKENS = 16
"""The dialect's own."""


def completion_request(asked: CompletionRequest, source: Source) -> Request:
    """Our request. Without ``temperature`` an answer is greedy, as everywhere here."""
    ours = asked.overspill or OverspillOptions()
    sampling: dict[str, Any] = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
        "seed": asked.seed,
        "logit_bias": {int(key): bias for key, bias in (asked.logit_bias or {}).items()},
        **ours.sampling(),
    }
    return Request(
        messages=(Message("user", asked.prompt),),
        raw=True,
        max_tokens=asked.max_tokens or DEFAULT_MAX_TOKENS,
        sampling=Sampling(**{k: v for k, v in sampling.items() if v is not None}),
        stop=tuple(asked.stop or ()),
        top_logprobs=asked.logprobs,
        **ours.common(source, asked.model),
    )
