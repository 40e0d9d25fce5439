"""Templates of texts: sentences with `{}` for the name of a class or part, in zero-shot models and captions."""

from collections.abc import Sequence

HYPOTHESIS_TEMPLATES = ("a 3D model of a {}.",)
"""Texts for the name of a class, unless a config has others."""
CAPTION_TEMPLATES = (
    "a 3D model of a {}.",
    "a point cloud of a {}.",
    "a 3D scan of a {}.",
    "the shape of a {}.",
    "this is a {}.",
    "{}",
)
"""Captions of clouds that have no other text than the name of their class."""
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


def fill_templates(labels: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Return the texts of each label, one per template."""
    check_templates("hypothesis_template", templates)
    # Not str.format: labels and templates may contain other braces.
    return [[template.replace("{}", label) for template in templates] for label in labels]


def check_templates(argument: str, templates: Sequence[str], most: int = 1) -> None:
    """Check that there are templates, and that each has one `{}`, or up to `most`."""
    # A string is a sequence too, of letters.
    is_list = not isinstance(templates, str) and len(templates) > 0
    if not is_list or not all(isinstance(text, str) and 1 <= text.count("{}") <= most for text in templates):
        expected = "one {} for the label" if most == 1 else "{} for the part, and perhaps a second {} for the category"
        raise ValueError(f"{argument}={templates!r}; expected a list with at least one template, each with {expected}")
