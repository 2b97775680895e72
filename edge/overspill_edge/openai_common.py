"""What OpenAI's requests for text have in common: sampling, stops, and how they are streamed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from overspill.errors import InvalidRequest
from overspill.types.chat import Sampling
from overspill_edge.body import NonEmpty, Strict
from overspill_edge.dialect import NOTHING, OverspillOptions


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Stops = Annotated[list[NonEmpty], Field(max_length=4), BeforeValidator(_as_list)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(Strict):
    """``include_obfuscation`` pads against eavesdroppers on a network; there is none here."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class TextRequest(Strict):
    """The fields of chat completions that completions have too. Bounds are the dialect's."""

    model: NonEmpty
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    overspill: OverspillOptions | None = None

    @property
    def include_usage(self) -> bool:
        """True where the stream is to end with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def ours(self) -> OverspillOptions:
        """What is ours, or nothing of it."""
        return self.overspill or NOTHING

    def check_stream_options(self) -> None:
        """Raises ``InvalidRequest`` for options of a stream where none is asked for."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("'stream_options' is for streams.", param="stream_options")

    def sampling(self) -> Sampling:
        """What was asked for over the SDK's defaults, which are greedy: the same request gives the
        same answer."""
        asked: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            "logit_bias": {int(key): bias for key, bias in (self.logit_bias or {}).items()},
            **self.ours.sampling(),
        }
        return Sampling(**{name: value for name, value in asked.items() if value is not None})
