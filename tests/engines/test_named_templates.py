"""Models that keep a chat template of its own for tools: Hermes 2 Pro, Hermes 3, Command R7B."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from overspill.engines.chat_format import ChatTemplates
from overspill.engines.echo import TEMPLATE, EchoBackend
from overspill.engines.mlx_tokenizer import FolderTokenizer
from overspill.engines.registry import EngineOptions, open_engine
from overspill.errors import ModelInvalid, UnsupportedOption
from overspill.types.chat import Message, Request, Tool, ToolCall

pytestmark = pytest.mark.anyio

PLAIN = (
    "{% for m in messages %}<|im_start|>plain {{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
NAMED = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": TEMPLATE}]
ASK = (Message("user", "hi"),)
TOOL = (Tool("clock", "The time"),)
CALLED = (
    *ASK,
    Message("assistant", "", tool_calls=(ToolCall("1", "clock", "{}"),)),
    Message("tool", "noon", tool_call_id="1"),
)


class Named(EchoBackend):
    """Echo with two templates."""

    def __init__(self, plain=PLAIN, tools=TEMPLATE):
        super().__init__()
        self._templates = plain, tools

    @property
    def chat_template(self):
        return self._templates[0]

    @property
    def tool_template(self):
        return self._templates[1]


def test_the_one_for_tools_serves_offers_and_calls_in_the_past():
    templates = ChatTemplates(Named(), model="m")
    assert "plain user" in templates.choose(ASK).render(ASK)
    for messages, tools in ((ASK, TOOL), (CALLED, TOOL), (CALLED, ())):
        shown = templates.choose(messages, tools).render(messages, tools)
        assert "plain" not in shown
        assert ("<tools>" in shown) is bool(tools)
        assert ("noon" in shown) is (messages is CALLED)


def test_a_tool_template_in_an_unknown_form_is_left_alone():
    templates = ChatTemplates(Named(plain=TEMPLATE, tools=PLAIN), model="m")
    assert "clock" in templates.choose(ASK, TOOL).render(ASK, TOOL)
    neither = ChatTemplates(Named(tools="{{ tools | tojson }}"), model="m")
    with pytest.raises(UnsupportedOption, match="no tool calls"):
        neither.choose(ASK, TOOL).render(ASK, TOOL)


def test_a_tool_template_that_does_not_compile_is_the_models_fault():
    with pytest.raises(ModelInvalid, match="chat template of m"):
        ChatTemplates(Named(tools="{% for %}"), model="m")


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A tokenizer's folder, in which a test says where its templates are."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, tmp_path / name)
    return tmp_path


def test_templates_in_files_come_before_those_of_the_config(folder):
    _write_named(folder)
    listed = FolderTokenizer(folder, size=2048)
    assert (listed.chat_template, listed.tool_template) == (PLAIN, TEMPLATE)
    (folder / "chat_template.jinja").write_text("of a file")
    alone = FolderTokenizer(folder, size=2048)
    assert (alone.chat_template, alone.tool_template) == ("of a file", None)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("for tools")
    assert FolderTokenizer(folder, size=2048).tool_template == "for tools"


def _write_named(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": NAMED}))


@pytest.fixture(params=["llama.cpp", "mlx"])
def model(request, tiny_folder, tiny_gguf, tmp_path):
    """The tiny model with both templates, as each runtime reads them."""
    if request.param == "mlx":
        pytest.importorskip("mlx_lm", reason="pip install 'overspill[mlx]'")
        shutil.copytree(tiny_folder, tmp_path / "named")
        _write_named(tmp_path / "named")
        return tmp_path / "named"
    pytest.importorskip("llama_cpp", reason="pip install 'overspill[llama]'")
    import gguf
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    path = tmp_path / "named.gguf"
    both = {"tokenizer.chat_template": MetadataDetails(gguf.GGUFValueType.STRING, NAMED)}
    copy_with_new_metadata(gguf.GGUFReader(tiny_gguf), gguf.GGUFWriter(path, "llama"), both, [])
    return path


async def test_both_runtimes_find_the_one_for_tools(model):
    options = EngineOptions(context_tokens=512, threads=1 if model.suffix == ".gguf" else None)
    request = Request(ASK, max_tokens=2)
    async with open_engine(str(model), options=options) as engine:
        assert engine.card.tools
        asked = replace(request, tools=TOOL)
        plain, offered = [await engine.count_prompt_tokens(r) for r in (request, asked)]
        assert offered > plain
        async for chunk in engine.generate(asked):
            last = chunk
        assert last.finish.usage.prompt_tokens == offered
        declined = replace(asked, tool_choice="none")
        assert await engine.count_prompt_tokens(declined) == plain
