"""Untrusted templates: some render in time, others could render for ever."""

import pytest

from hf_any3d.chat.templates import PUBLISHED, check_templates

LOOP = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        *PUBLISHED.values(),
        LOOP,
        "{% set said = messages[1:] %}{% for m in said %}{% if loop.index0 % 2 %}{{ m.content | trim }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        "{% for m in messages %}{% set role, said = m.role, m.content %}{{ role }}{{ said }}{% endfor %}",
        "{% set ns = namespace(text='') %}{% for m in messages %}{% set ns.text = ns.text ~ m.content %}{% endfor %}",
        "{% macro tag(role) %}<|{{ role }}|>{% endmacro %}{% for m in messages %}{{ tag(m.role) }}{% endfor %}",
        "{% for m in messages %}{%- generation -%}{{ m.content }}{%- endgeneration -%}{% endfor %}",
    ],
)
def test_templates_that_loop_over_messages_are_accepted(template):
    check_templates(template)
    check_templates({"default": template, "other": LOOP})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "calls range"),
        ("{{ lipsum(n=100000) }}", "calls lipsum"),
        ("{{ 'a' * 10000000000 }}", "multiplies"),
        ("{{ 10 ** 10 ** 10 }}", "multiplies"),
        ("{% macro a() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}", "macro a calls macros"),
        ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "loops recursively"),
        (
            "{% for a in messages %}" * 3 + "{% endfor %}" * 3,
            "3 nested loops",
        ),
        ("{% set x = 'a' %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}", "doubles a text"),
        (
            "{% set n = namespace(x='a') %}{% for m in messages %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "doubles a text",
        ),
        ("{% for c in '" + "a" * 3000 + "' %}{% endfor %}", "a text of 3,000 characters"),
        ("{% for m in messages %}", "no template of Jinja"),
        ("{{" + "(" * 5000, "no template of Jinja"),
        ("a" * 100_001, "100,001 characters"),
        (3, "is a int"),
    ],
)
def test_templates_that_could_render_for_ever_are_refused(template, message):
    with pytest.raises(ValueError, match=f"chat_template.*{message}"):
        check_templates({"default": LOOP, "evil": template})
