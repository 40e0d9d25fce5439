"""Prompts as arrays, and the published templates."""

from hf_any3d.processing.chat_templates import PUBLISHED, published_templates


def test_one_of_the_published_templates_is_the_default():
    assert published_templates() == {"default": PUBLISHED["training"], **PUBLISHED}
    assert published_templates("demo")["default"] == PUBLISHED["demo"]
