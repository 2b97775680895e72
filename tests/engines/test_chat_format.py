"""Chat templates are strangers' code: what they may do, what stops them, who is blamed."""

from __future__ import annotations

import re

import pytest

from overspill.engines import chat_bounds
from overspill.engines.chat_format import ChatTemplate
from overspill.errors import InvalidRequest, ModelInvalid, UnsupportedOption
from overspill.types.chat import Message, Tool, ToolCall

USER = (Message("user", "hi"),)
LOOP = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


TWICE = "{% set ns = namespace(s='x' * 9999, l=[1]) %}" + "{% set ns.s = TWO %}" * 40
"""What doubles, forty times without a loop."""
HOSTILE = [
    TWICE.replace("TWO", doubled)
    for doubled in (
        "ns.s + ns.s",
        "ns.s ~ ns.s",
        "[ns.s, ns.s] | join",
        "''.join([ns.s, ns.s])",
        "'%s%s' % (ns.s, ns.s)",
        "'%s%s' | format(ns.s, ns.s)",
        "'{}{}'.format(ns.s, ns.s)",
        "(ns.s | safe) + ns.s",
    )
]
HOSTILE += [
    "{% set x = 'xxxxxxxxx' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40,
    "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set x = 'xxxxx' %}" + "{% set x = f(x) %}" * 40,
    "{% set n = namespace(n=99) %}" + "{% set n.n = n.n * n.n %}" * 40,
    *(
        "{% set ns = namespace(l=['x']) %}" + "{% set ns.l = [ns.l, ns.l] %}" * 60 + shown
        for shown in (
            "{{ ns.l }}",
            "{{ ns }}",
            "{{ ns.l | tojson }}",
            "{{ '' ~ ns.l }}",
            "{{ '{}'.format(ns.l) }}",
            "{{ {'l': ns.l}.items() }}",
        )
    ),
    "{{ ('x' * 9999) | replace('x', 'x' * 9999) }}",
    "{{ ('x' * 9999).replace('', 'x' * 9999) }}",
    "{{ ('\n' * 9999) | indent(9999) }}",
    "{{ ([''] * 9999) | join('x' * 9999) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%.999999999f' | format(1) }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 999999999) }}",
    "{{ '{x:999999999}'.format_map({'x': 1}) }}",
    "{{ 'x' | center(999999999) }}",
    "{{ 'x'.ljust(999999999) }}",
    "{{ '\t'.expandtabs(999999999) }}",
    "{{ (1).to_bytes(999999999) }}",
    "{{ 'x\ny' | indent(999999999) }}",
    "{{ [1] | batch(999999999, 'x') | list }}",
    "{{ [1] | tojson(indent=999999999) }}",
    "{{ 1 | round(999999999, 'ceil') }}",
    "{{ lipsum(n=9999999) }}",
    "{% set l = [] %}{% set x = 'x' * 9999999 %}"
    "{% for i in range(99999) %}{% set _ = l.append(x[1:]) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}",
    "{% set __overspill_tick__ = namespace %}"
    "{% for a in range(9999) %}{% for b in range(9999) %}{% set x=1 %}{% endfor %}{% endfor %}",
]


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
        *HOSTILE,
    ],
    ids=range(17 + len(HOSTILE)),
)
def test_a_broken_or_hostile_template_is_the_models_fault(source):
    with pytest.raises(ModelInvalid, match="chat template of m") as caught:
        _template(source).render(USER)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(999) %}{% endfor %}",
        "{% for i in range(999) if i < 0 %}{% endfor %}",
        "{% set ns = namespace(d=0) %}{% macro f() %}{% set ns.d = ns.d + 1 %}{% if ns.d < 40 %}"
        "{{ f() }}{{ f() }}{% endif %}{% set ns.d = ns.d - 1 %}{% endmacro %}{{ f() }}",
        "{% set ns = namespace(d=0) %}{% block a %}{% set ns.d = ns.d + 1 %}{% if ns.d < 40 %}"
        "{{ self.a() }}{{ self.a() }}{% endif %}{% set ns.d = ns.d - 1 %}{% endblock %}",
    ],
)
def test_all_that_can_be_repeated_takes_steps(source, monkeypatch):
    monkeypatch.setattr(chat_bounds, "MAX_STEPS", 300)
    with pytest.raises(ModelInvalid, match="runs too long"):
        _template(source).render(USER)


def test_what_templates_do_with_texts_they_still_do():
    source = (
        "{% set a = ['x', 1, none] %}{{ a }} {{ a | join('-') }} {{ 'é' ~ 1 ~ a[1:] }} {{ a[::2] }}"
        "{% set b %}{{ 'c' * 3 }}{% endset %} {{ b }} {{ '%s=%03d' % ('n', 7) }}"
        " {{ '{{{}}} {:>4}'.format('n', 7) }} {{ '%d%%' | format(5) }} {{ 'a\nb' | indent }}"
        " {{ 'aXa' | replace('a', '') }} {{ 'aXa'.replace('X', 'YY') }} {{ '+'.join(a[:1]) }}"
        " {{ {'k': [1]} | tojson(indent=1) }} {{ messages[1:] | length }} {{ 7 % 4 + 2 * 3 }}"
        " {%- for i in range(9) if i is odd %} {{ i }}{% endfor %}"
    )
    assert _template(source).render(USER) == (
        "['x', 1, None] x-1-None é1[1, None] ['x', None] ccc n=007 {n}    7 5% a\n    b X aYYa x"
        ' {\n "k": [\n  1\n ]\n} 0 9 1 3 5 7'
    )


def test_everything_that_a_request_brings_is_marked():
    source = (
        "{{ tools | tojson }}{% for m in messages %}{{ m.role }} {{ m.name }} {{ m.content }}"
        "{{ m.tool_call_id }}{% for c in m.tool_calls %}{{ c.id }}"
        "<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
    )
    arguments = '{"@4": [{"@5": "@\\u0036"}]}'
    turns = (
        Message("user", "@0", name="@1"),
        Message("assistant", "", tool_calls=(ToolCall("@2", "@3", arguments),)),
        Message("tool", "", tool_call_id="@7"),
    )
    tool = Tool("@8", "@9", {"properties": {"@a": {"enum": ["@b", ("@c",)]}}})
    marked = _template(source).render(turns, (tool,), lambda text: text.replace("@", "^"))
    assert "@" not in marked
    assert {f"^{place}" for place in "0123456789abc"} == set(re.findall(r"\^[0-9a-c]", marked))


def test_long_conversations_are_no_hostile_ones():
    turns = tuple(Message("user", "word " * 50) for _ in range(5000))
    assert len(_template(LOOP).render(turns)) > 5000 * 250
    looks_back = (
        "{% for m in messages %}{% if messages[loop.index:] %}"
        "{{ messages[0].get('content') | default('') | length }}{% endif %}{% endfor %}"
    )
    long = (Message("user", "word " * 10_000), *turns)
    assert _template(looks_back).render(long) == "50000" * 5000


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
