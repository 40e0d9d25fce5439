"""Names of parts as texts: cleaning and prompts."""

import re
from collections.abc import Sequence

PART_TEMPLATES = ("{}", "a {}", "{} part")
"""Texts for the name of a part."""
CATEGORY_TEMPLATES = ("a {} of a {}", "the {} of a {}", "{} of {}", "a {} part of a {}")
"""Texts for the names of a part and of the object's category."""
TEMPLATE_SETS = {
    "part_only": PART_TEMPLATES,
    "part_plus_cat": CATEGORY_TEMPLATES,
    "ensemble": (*CATEGORY_TEMPLATES, *PART_TEMPLATES),
}
"""Templates by the names of the released program's settings."""


def clean_label(label: str) -> str:
    """Return a label in lower case, with single spaces in place of everything but letters and digits.

    Raises:
        ValueError: If nothing is left.
    """
    cleaned = " ".join(re.sub(r"[\W_]+", " ", label.lower()).split()) if isinstance(label, str) else ""
    if not cleaned:
        raise ValueError(f"label {label!r} has no letters or digits; expected words")
    return cleaned


def part_prompts(
    labels: Sequence[str], templates: str | Sequence[str] = "part_only", category: str | None = None
) -> list[list[str]]:
    """Return the texts of each label, one per template.

    There is no grammar: "a arm" is what the released program asks.

    Args:
        labels: Names of parts, which are cleaned.
        templates: Name of a set in `TEMPLATE_SETS`, or texts with one `{}` for the part and perhaps a second one for
            the category.
        category: Name of the object's category, which is cleaned too; required by templates with two `{}`.

    Raises:
        ValueError: If the templates are unknown or malformed, a label is empty, or the category is missing.
    """
    if isinstance(templates, str):
        if templates not in TEMPLATE_SETS:
            raise ValueError(
                f"templates={templates!r}; expected one of {', '.join(TEMPLATE_SETS)}, or a list of texts"
            )
        templates = TEMPLATE_SETS[templates]
    check_part_templates("templates", templates)
    names = [clean_label(label) for label in labels]
    asked = None if category is None else clean_label(category)
    if asked is None and (pairs := [template for template in templates if template.count("{}") == 2]):
        raise ValueError(f"category is missing, which template {pairs[0]!r} names; give one, such as 'object'")
    texts = []
    for name in names:
        own = (template.split("{}") for template in templates)
        # Not str.format: templates may contain other braces.
        texts.append([before + name + (asked.join(rest) if asked else rest[0]) for before, *rest in own])
    return texts


def check_part_templates(argument: str, templates: Sequence[str]) -> None:
    """Check templates for names of parts.

    Raises:
        ValueError: If there are none, or one does not have one or two `{}`.
    """
    if isinstance(templates, str) or not len(templates):
        raise ValueError(f"{argument}={templates!r}; expected a list with at least one template")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") not in (1, 2):
            raise ValueError(
                f"{argument} has {template!r}; expected a text with {{}} for the part, and perhaps a second {{}} for "
                "the category"
            )
