"""The forms in which families of models write tool calls; each reads and constrains its own.

A dialect is recognised by letting the model's own template write a call (``chat_format``) and
looking at what it wrote, not by the model's name. To add one: a class with ``of``, ``parser`` and
``grammar``, and a line in ``DIALECTS``.
"""

from __future__ import annotations

from overspill.engines.dialects.base import CallParser, Dialect, Parsed
from overspill.engines.dialects.cohere import Cohere
from overspill.engines.dialects.framed_calls import FramedCalls
from overspill.engines.dialects.gemma_calls import GemmaCalls
from overspill.engines.dialects.harmony import Harmony
from overspill.engines.dialects.json_calls import FunctionTag, Llama3, Mistral, TaggedJson
from overspill.engines.dialects.value_tags import InvokeTags, KeyValueTags
from overspill.engines.dialects.xml_calls import XmlCalls

__all__ = ["DIALECTS", "CallParser", "Dialect", "Parsed", "detect"]

DIALECTS = (
    Harmony,
    Mistral,
    FramedCalls,
    Cohere,
    GemmaCalls,
    InvokeTags,
    KeyValueTags,
    XmlCalls,
    TaggedJson,
    FunctionTag,
    Llama3,
)
"""In the order in which they are tried: the more special ones first."""


def detect(sample: str, tool: str) -> Dialect | None:
    """The dialect in which ``sample`` calls ``tool``; None for one that is not known here."""
    for dialect in DIALECTS:
        if (found := dialect.of(sample, tool)) is not None:
            return found
    return None
