"""Chat templates are strangers' code: what they may do, what stops them, who is blamed."""

from __future__ import annotations

import pytest

from overspill.engines.chat_format import ChatTemplate
from overspill.errors import InvalidRequest, ModelInvalid, UnsupportedOption
from overspill.types.chat import Message, Tool, ToolCall

USER = (Message("user", "hi"),)
LOOP = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def _template(source, **texts):
    return ChatTemplate(source, model="m", **texts)


def test_messages_and_texts_reach_the_template():
    source = "{{ bos_token }}" + LOOP + "{% if add_generation_prompt %}>{% endif %}{{ eos_token }}"
    template = _template(source, bos_text="<s>", eos_text="</s>")
    turns = (Message("system", "s"), Message("user", "u"))
    assert template.render(turns) == "<s>[system]s[user]u></s>"


def test_tools_and_calls_reach_the_template_as_objects():
    source = (
        "{% for t in tools %}{{ t.function.name }}:{{ t.function.parameters | tojson }}{% endfor %}"
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ m.content }}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
        "{% if not m.tool_calls %}{{ m.content }}{% endif %}{% endfor %}"
    )
    call = Message("assistant", "", tool_calls=(ToolCall("1", "f", '{"x": "<é>"}'),))
    tool = Tool("f", parameters={"type": "object"})
    rendered = _template(source).render((call,), (tool,))
    assert rendered == (
        'f:{"type": "object"}<tool_call>{"name": "f", "arguments": {"x": "<é>"}}</tool_call>'
    )


def test_tools_for_a_template_that_knows_none_are_refused():
    with pytest.raises(UnsupportedOption, match="no tool calls") as caught:
        _template(LOOP).render(USER, (Tool("f"),))
    assert caught.value.param == "tools"


def test_a_templates_own_refusal_blames_the_messages():
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        _template("{{ raise_exception('roles must alternate') }}").render(USER)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content }}",
        "{% include 'x' %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for x in range(10**9) %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% set x=1 %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 10**12 }}",
        "{{ 10**9**9 }}",
        "{{ 'xxxxxxxxxxxxxxxx' * 2000000 }}",
        "x" * (256 * 1024 + 1),
    ],
    ids=range(17),
)
def test_a_broken_or_hostile_template_is_the_models_fault(source):
    with pytest.raises(ModelInvalid, match="chat template of m") as caught:
        _template(source).render(USER)
    assert "\n" not in str(caught.value)


def test_long_conversations_are_no_hostile_ones():
    turns = tuple(Message("user", "word " * 50) for _ in range(5000))
    assert len(_template(LOOP).render(turns)) > 5000 * 250


def test_a_model_without_a_template_continues_one_user_message():
    assert _template(None).render(USER) == "hi"
    for turns in (USER * 2, (Message("system", "s"),)):
        with pytest.raises(UnsupportedOption, match="no chat template"):
            _template(None).render(turns)


def test_a_template_may_grow_its_own_lists_and_never_what_it_is_given():
    own = "{% set own = [] %}{% for m in messages %}{% set _ = own.append(m.content) %}{% endfor %}"
    template = ChatTemplate(own + "{{ own.pop() }}{{ own|length }}", model="m")
    assert template.render((Message("user", "one"),)) == "one0"
    for change in ("messages.pop()", "messages[0].update(x=1)", "[1].insert(0, 2)"):
        with pytest.raises(ModelInvalid, match="unsafe"):
            ChatTemplate("{{ " + change + " }}", model="m").render((Message("user", "one"),))
