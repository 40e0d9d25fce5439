"""Untrusted templates: some render in time, others could render for ever."""

import numpy as np
import pytest

from hf_any3d.chat.templates import PUBLISHED, Prompt, check_templates, pad_prompts, published_templates

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


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_padded_on_a_side_to_the_longest_or_further(side):
    short, long = Prompt(), Prompt()
    short.add([5])
    long.add([6, 7])
    long.add([8], is_answer=True)
    assert (long.labels, long.attention_mask) == ([-100, -100, 8], [1, 1, 1])
    batch = pad_prompts([short, long], 9, side, least=4)
    rows = [[9, 9, 9, 5], [9, 6, 7, 8]] if side == "left" else [[5, 9, 9, 9], [6, 7, 8, 9]]
    assert batch["input_ids"].tolist() == rows and batch["input_ids"].dtype == np.int64
    mask = [[number != 9 for number in row] for row in rows]
    assert batch["attention_mask"].tolist() == mask and sorted(batch["labels"][1].tolist()) == [-100, -100, -100, 8]
    assert pad_prompts([short, long], 9, side)["input_ids"].shape == (2, 3)
    long.shorten(2)
    assert (long.input_ids, long.labels, long.attention_mask) == ([6, 7], [-100, -100], [1, 1])
    with pytest.raises(ValueError, match="padding_side='middle'; expected 'left' or 'right'"):
        pad_prompts([short], 9, "middle")


def test_one_of_the_published_templates_is_the_default():
    assert published_templates() == {"default": PUBLISHED["training"], **PUBLISHED}
    assert published_templates("demo")["default"] == PUBLISHED["demo"]
    with pytest.raises(ValueError, match="default='own'; expected one of 'training', 'evaluation', 'demo'"):
        published_templates("own")


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in messages %}{% for b in a.content %}{% endfor %}{% endfor %}",
        "{% set x = 'a' ~ x %}{% set n = namespace(x='') %}{% set n.x = n.x ~ 'a' %}",
        "{{ '" + "a" * 2000 + "' }}",
        "a" * 100_000,
    ],
)
def test_what_is_just_allowed(template):
    check_templates(template)


def test_templates_that_are_no_texts_are_named():
    with pytest.raises(ValueError, match="chat_template is a list; expected a template, or templates by name"):
        check_templates([LOOP])
    for text, problem in (
        ("{{ cycler('a') }}", "calls cycler"),
        ("{% set x = x %}{% set x = x ~ x %}", "doubles"),
        ("{% macro b() %}x{% endmacro %}{% macro a() %}{{ b() }}{% endmacro %}", "macro a calls macros"),
        ("{{ '" + "a" * 2001 + "' }}", "a text of 2,001 characters"),
    ):
        with pytest.raises(ValueError, match=f"chat_template 'default': .*{problem}"):
            check_templates(text)
