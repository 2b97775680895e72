"""The one chat template of the family: ChatML, with tools listed compactly.

A tool is listed as ``name(parameter: type, ...) - description`` between ``<tools>`` tags in the
system turn, and called as ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``. The full
JSON schema would cost a small model several times the tokens for the same information.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

CHAT_TEMPLATE = (
    "{%- set first_is_system = messages and messages[0]['role'] == 'system' -%}"
    "{%- if tools or first_is_system -%}"
    "{{- '<|im_start|>system\\n' -}}"
    "{%- if first_is_system -%}{{- messages[0]['content'] -}}{%- endif -%}"
    "{%- if tools -%}"
    "{%- if first_is_system -%}{{- '\\n' -}}{%- endif -%}"
    "{{- '<tools>' -}}"
    "{%- for tool in tools -%}"
    "{%- set f = tool['function'] if 'function' in tool else tool -%}"
    "{{- '\\n' + f['name'] + '(' -}}"
    "{%- if f['parameters'] and f['parameters']['properties'] -%}"
    "{%- for key, spec in f['parameters']['properties'].items() -%}"
    "{%- if not loop.first -%}{{- ', ' -}}{%- endif -%}"
    "{{- key -}}"
    "{%- if spec['type'] is string -%}{{- ': ' + spec['type'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- ')' -}}"
    "{%- if f['description'] -%}{{- ' - ' + f['description'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{{- '\\n</tools>' -}}"
    "{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] != 'system' -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- endif -%}"
    "{%- if message['tool_calls'] -%}"
    "{%- for call in message['tool_calls'] -%}"
    "{%- set f = call['function'] if 'function' in call else call -%}"
    "{{- '<tool_call>{\"name\": \"' + f['name'] + '\", \"arguments\": ' -}}"
    "{%- if f['arguments'] is string -%}{{- f['arguments'] -}}"
    "{%- else -%}{{- f['arguments'] | tojson -}}{%- endif -%}"
    "{{- '}</tool_call>' -}}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


@cache
def _compiled() -> Any:
    import jinja2  # only evaluation and tests render by jinja; training uses render_pieces

    # Prompts are no HTML: nothing may be escaped.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701
    return environment.from_string(CHAT_TEMPLATE)


def render(
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    add_generation_prompt: bool = True,
) -> str:
    """Render a conversation by the jinja template."""
    text: str = _compiled().render(
        messages=messages, tools=list(tools) or None, add_generation_prompt=add_generation_prompt
    )
    return text


def _system_text(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> str:
    parts = []
    if messages and messages[0]["role"] == "system":
        parts.append(messages[0]["content"])
    if tools:
        lines = ["<tools>"]
        for tool in tools:
            f = tool["function"]
            properties = f["parameters"]["properties"]
            signature = ", ".join(f"{k}: {v['type']}" for k, v in properties.items())
            lines.append(f"{f['name']}({signature}) - {f['description']}")
        parts.append("\n".join([*lines, "</tools>"]))
    return "\n".join(parts)


def _content(message: dict[str, Any]) -> str:
    text = message.get("content") or ""
    for call in message.get("tool_calls") or ():
        f = call["function"]
        text += f'<tool_call>{{"name": "{f["name"]}", "arguments": {f["arguments"]}}}</tool_call>'
    return text


def render_pieces(
    messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()
) -> list[tuple[str, bool]]:
    """Render as (text, learnt) pieces: the assistant's words and ends of turn are learnt.

    Joined, the pieces equal :func:`render` without a generation prompt (a test holds them
    together); this form is quicker and says which tokens carry loss.
    """
    pieces = []
    system = _system_text(messages, tools)
    if system:
        pieces.append((f"{IM_START}system\n{system}{IM_END}\n", False))
    for message in messages:
        if message["role"] == "system":
            continue
        head = f"{IM_START}{message['role']}\n"
        if message["role"] == "assistant":
            pieces += [(head, False), (f"{_content(message)}{IM_END}", True), ("\n", False)]
        else:
            pieces.append((f"{head}{_content(message)}{IM_END}\n", False))
    return pieces
