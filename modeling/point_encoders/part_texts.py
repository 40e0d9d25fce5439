"""Names of parts as texts: cleaning and prompts, and their vectors from a text tower."""

import re
from collections.abc import Sequence

import torch

from hf_any3d.modeling.deferred_errors import refuse_later
from hf_any3d.modeling.point_encoders.aligned_encoders.modeling_aligned_encoders import AlignedTextsMixin
from hf_any3d.modeling.point_encoders.text_templates import TEMPLATE_SETS, check_templates
from hf_any3d.modeling.point_encoders.text_towers import embed_prompts

_IGNORED = -100


def clean_label(label: str) -> str:
    """Return a label in lower case, with single spaces in place of everything but letters and digits."""
    cleaned = " ".join(re.sub(r"[\W_]+", " ", label.lower()).split()) if isinstance(label, str) else ""
    if not cleaned:
        raise ValueError(f"label {label!r} has no letters or digits; expected words")
    return cleaned


def part_prompts(
    labels: Sequence[str], templates: str | Sequence[str] = "part_only", category: str | None = None
) -> list[list[str]]:
    """Return the texts of each label, one per template; "a arm" is what the released program asks.

    `templates` are the name of a set in `TEMPLATE_SETS`, or texts with one `{}` for the part and perhaps a second one
    for the object's category, which these require. Names are cleaned.
    """
    if isinstance(templates, str):
        templates = TEMPLATE_SETS[templates]
    check_templates("templates", templates, most=2)
    # Names of parts come from files and programs, such as "Chair_Arm"; text towers know words.
    names = [clean_label(label) for label in labels]
    asked = None if category is None else clean_label(category)
    if asked is None and (pairs := [template for template in templates if template.count("{}") == 2]):
        raise ValueError(f"category is missing, which template {pairs[0]!r} names; give one, such as 'object'")
    texts = []
    for name in names:
        # Not str.format: templates may contain other braces.
        pieces = (template.split("{}") for template in templates)
        # The first placeholder is the part, a second one the category.
        texts.append([before + name + (asked.join(rest) if asked else rest[0]) for before, *rest in pieces])
    return texts


def label_masks(labels: torch.Tensor, num_texts: int) -> torch.Tensor:
    """Return which points have which label, `(batch, texts, points)` bool, from numbers `(batch, points)` or -100."""
    wrong = ((labels < 0) & (labels != _IGNORED)) | (labels >= num_texts)
    expected = f"expected 0 to {num_texts - 1}, one for each text, or {_IGNORED} for points without a label"
    if labels.device.type != "cpu":
        refuse_later(wrong.any(), f"labels has numbers without a text; {expected}")
    elif not torch.compiler.is_compiling() and wrong.any():
        raise ValueError(f"labels has {int(labels[wrong][0])}; {expected}")
    # (batch, 1, points) against (1, texts, 1). -100 equals no number.
    return labels.unsqueeze(1) == torch.arange(num_texts, device=labels.device).view(1, -1, 1)


def text_targets(
    labels: torch.Tensor, text_mask: torch.Tensor | None, clouds: Sequence[int], texts: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return which points each text names, `(batch, texts, points)`, and which texts count, `(batch, texts)` or None.

    `labels` are `(batch, points)` numbers of the texts, or `(batch, texts, points)`, True where a text names a point;
    `text_mask` is `(batch, texts)` or None; `clouds` are the numbers of clouds and of points.
    """
    batch, count = clouds
    if labels.shape not in ((batch, count), (batch, texts, count)):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; expected ({batch}, {count}), one per point, or ({batch}, "
            f"{texts}, {count}), one per text and point"
        )
    if text_mask is not None and text_mask.shape != (batch, texts):
        raise ValueError(f"text_mask has shape {tuple(text_mask.shape)}; expected ({batch}, {texts})")
    # Masks may overlap, numbers cannot.
    masks = label_masks(labels, texts) if labels.ndim == 2 else labels.bool()
    return masks, None if text_mask is None else text_mask.bool()


class PartTextsMixin(AlignedTextsMixin):
    """For models that find parts by name, whose config has templates for names of parts alone and with a category."""

    def encode_labels(
        self, labels: Sequence[str], templates: str | Sequence[str] | None = None, category: str | None = None
    ) -> torch.Tensor:
        """Return unit vectors `(labels, text_width)` of names of parts, for `text_embeds`.

        Templates are as of `part_prompts`, by default those of the config, for a given `category` of the object (or
        "object") its `category_templates`.
        """
        config = self.config
        texts = config.hypothesis_templates if category is None else config.category_templates
        prompts = part_prompts(labels, texts if templates is None else templates, category)
        return embed_prompts(self.text_tower, prompts, self.device)
