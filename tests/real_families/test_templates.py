"""Every family's template renders what it can, refuses the rest, and its calls are read back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from overspill.engines.chat_format import ChatTemplate
from overspill.engines.dialects.base import Parsed
from overspill.errors import InvalidRequest, ModelInvalid, OverspillError, UnsupportedOption
from overspill.types.chat import Message, Tool, ToolCall

ARGUMENTS = {"place": "Zürich <1>", "days": 3, "deep": {"list": [1, None, True]}}
TOOL = Tool(
    "get_weather",
    "The weather at a place",
    {
        "type": "object",
        "properties": {
            "place": {"type": "string", "description": "where"},
            "days": {"type": "integer", "description": "how many"},
            "deep": {"type": "object", "description": "more"},
        },
        "required": ["place"],
    },
)
ASK = Message("user", "How will it be tomorrow?")
CALLING = Message(
    "assistant",
    "",
    tool_calls=(ToolCall("call_0123_1", TOOL.name, json.dumps(ARGUMENTS, ensure_ascii=False)),),
)
RESULT = Message("tool", "It will snow.", tool_call_id="call_0123_1", name=TOOL.name)
SYSTEM = Message("system", "Answer in verse.")

DIALECTS = {
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Bielik-11B-v3.0-Instruct": "hermes",
    "MiMo-VL": "hermes",
    "MiniMax-M1": "hermes",
    "NVIDIA-Nemotron-Nano-v2": "hermes",
    "Reka-Edge": "hermes",
    "ibm-granite-granite-4.0": "hermes",
    "ibm-granite-granite-4.1": "hermes",
    "Apriel-1.6-15b-Thinker-fixed": "hermes",
    "unsloth-Apriel-1.5": "hermes",
    "meta-llama-Llama-3.1-8B-Instruct": "llama3",
    "meta-llama-Llama-3.2-3B-Instruct": "llama3",
    "meta-llama-Llama-3.3-70B-Instruct": "llama3",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral",
    "unsloth-mistral-Devstral-Small-2507": "mistral",
    "Qwen3-Coder": "qwen_xml",
    "Qwen3.5-4B": "qwen_xml",
    "ByteDance-Seed-OSS": "qwen_xml",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "qwen_xml",
    "StepFun3.5-Flash": "qwen_xml",
    "meetkai-functionary-medium-v3.1": "function_tag",
    "openai-gpt-oss-120b": "harmony",
    "google-gemma-4-31B-it": "gemma",
    "google-gemma-4-31B-it-interleaved": "gemma",
    "GLM-4.6": "glm",
    "GLM-4.7-Flash": "glm",
    "Spark2.5": "glm",
    "inclusionai-ling-3.0-flash": "glm",
    "poolside-Laguna-S-2.1": "glm",
    "poolside-Laguna-XS-2.1": "glm",
    "poolside-Laguna-XS.2": "glm",
    "MiniMax-M2": "invoke",
    "deepseek-ai-DeepSeek-V3.2": "invoke",
    "deepseek-ai-DeepSeek-V4": "invoke",
    "deepseek-ai-DeepSeek-V4-Flash-0731": "invoke",
    "Kimi-K2-Instruct": "framed",
    "Kimi-K2-Thinking": "framed",
    "moonshotai-Kimi-K2": "framed",
    "upstage-Solar-Open-100B": "framed",
    "Cohere2MoE": "cohere",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "cohere",
}

BROKEN = {"fireworks-ai-llama-3-firefunction-v2"}
"""Templates that fail without variables of their own makers."""


def _names() -> list[str]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = cache.glob("overspill/sdists/llama_cpp_python-0.3.36/templates/*.jinja")
    return sorted(path.stem for path in found) or ["none"]


@pytest.fixture(params=_names())
def named(request, template_source):
    """Each template's name, and it, compiled."""
    name = request.param
    return name, ChatTemplate(template_source(name), model=name, bos_text="<s>", eos_text="</s>")


def test_there_are_as_many_as_there_were(families):
    assert len(list((families / "templates").glob("*.jinja"))) == 70
    assert len(list(families.glob("ggml-vocab-*.gguf"))) == 19


def test_a_question_is_rendered(named):
    name, template = named
    if name in BROKEN:
        with pytest.raises(ModelInvalid, match=name):
            template.render((ASK,))
    else:
        assert ASK.content in template.render((ASK,))


def test_every_part_is_rendered_or_refused(named):
    name, template = named
    cases = [
        ((SYSTEM, ASK), (), SYSTEM.content),
        ((ASK,), (TOOL,), TOOL.name),
        ((ASK, CALLING, RESULT), (TOOL,), "snow"),
        ((ASK, CALLING, RESULT), (TOOL,), "rich"),  # of Zürich, however it is escaped
        ((ASK, Message("assistant", "Fine."), ASK), (), "Fine."),
    ]
    for messages, tools, needle in cases:
        refused, shown = None, ""
        try:
            shown = template.render(messages, tools)
        except OverspillError as error:
            refused = error
        if refused is None:
            assert needle in shown
        elif name not in BROKEN:
            assert isinstance(refused, InvalidRequest)
            assert refused.param in ("messages", "tools")


def test_the_family_is_recognised_by_what_it_writes(named):
    name, template = named
    dialect = template.abilities.dialect
    assert (dialect.name if dialect else None) == DIALECTS.get(name)
    if dialect is None:
        with pytest.raises((UnsupportedOption, ModelInvalid)):
            template.render((ASK,), (TOOL,))


def test_a_written_call_is_read_back_in_every_split(named):
    name, template = named
    dialect = template.abilities.dialect
    if dialect is None:
        return
    # Seed-OSS writes inner objects as Python does, which is no JSON.
    flat = name == "ByteDance-Seed-OSS"
    arguments = {k: v for k, v in ARGUMENTS.items() if not (flat and k == "deep")}
    made = ToolCall("call_0123_1", TOOL.name, json.dumps(arguments, ensure_ascii=False))
    calling = Message("assistant", "", tool_calls=(made,))
    shown = template.render((ASK, calling, RESULT), (TOOL,))
    written = shown[shown.rfind(ASK.content) + len(ASK.content) :].split(RESULT.content)[0]
    # Templates frame what the model itself writes; it begins at the call.
    if name in TURN_HEADS:
        written = written[written.index(TURN_HEADS[name]) + len(TURN_HEADS[name]) :]
    else:
        written = written[written.index(_first_mark(dialect, written)) :]
    whole = _read(dialect, [written])
    assert [(call.name, json.loads(call.arguments)) for call in whole] == [(TOOL.name, arguments)]
    for at in range(1, len(written)):
        assert _read(dialect, [written[:at], written[at:]]) == whole


TURN_HEADS = {
    "openai-gpt-oss-120b": "<|start|>assistant",
    "meetkai-functionary-medium-v3.1": "assistant<|end_header_id|>",
}


def _first_mark(dialect, written):
    if dialect.name == "llama3":
        return '{"name"'
    return next(mark for mark in dialect.marks if mark in written)


def _read(dialect, pieces):
    parser = dialect.parser((TOOL,), id_prefix="t")
    parsed = sum((parser.feed(piece) for piece in pieces), Parsed()) + parser.flush()
    return parsed.calls


@pytest.mark.parametrize(
    ("name", "messages", "what"),
    [
        ("google-gemma-2-2b-it", (SYSTEM, ASK), "system"),
        ("google-gemma-2-2b-it", (ASK, CALLING, RESULT), "tool"),
        ("microsoft-Phi-3.5-mini-instruct", (ASK, CALLING, RESULT), "tool"),
        (
            "meta-llama-Llama-3.1-8B-Instruct",
            (ASK, Message("assistant", "", tool_calls=CALLING.tool_calls * 2)),
            "several tool calls",
        ),
    ],
)
def test_what_a_template_would_drop_is_refused(template_source, name, messages, what):
    template = ChatTemplate(template_source(name), model=name)
    with pytest.raises(InvalidRequest, match=what):
        template.render(messages)


def test_thinking_is_known_from_the_prompt(template_source):
    opened = ChatTemplate(template_source("Qwen3.5-4B"), model="m").abilities
    closed = ChatTemplate(template_source("Qwen-Qwen3-0.6B"), model="m").abilities
    never = ChatTemplate(template_source("Qwen-Qwen2.5-7B-Instruct"), model="m").abilities
    assert (opened.thinks, opened.thinking_is_open) == (True, True)
    assert (closed.thinks, closed.thinking_is_open) == (True, False)
    assert (never.thinks, never.thinking_is_open) == (False, False)
