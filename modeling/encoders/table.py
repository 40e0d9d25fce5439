"""Write the page of supported encoders from the registry: `python -m hf_any3d.modeling.encoders.table`."""

import sys

from hf_any3d.modeling.encoders import composite_checkpoints, encoder_families, refused_encoders

_HEAD = """# Encoders

Any2Point encodes point clouds with the frozen layers of these pretrained encoders. Tokens are projected into six
views. The table lists the positions that an encoder learned and how they are evaluated at the tokens' continuous
coordinates in the views.

This page is written by `python -m hf_any3d.modeling.encoders.table > docs/encoders.md`.
"""
_NOTES = """## Positions at continuous coordinates

- **Tables** (words on a line, patches on a grid, sinusoids) are interpolated linearly and averaged over the views.
- **Relative biases** are interpolated at the distance of two tokens, and averaged over the views. DeBERTa's scores
  depend on content and distance together: distances are rounded, and each head uses one view.
- **Rotary** encoders rotate queries and keys by the coordinates. `rotary_views` defines how views are combined:
  `split_frequencies` (default; each frequency belongs to one view, so that every head depends on all views),
  `split_heads`, `mean_angle` (on a line, the mean coordinate is a projection onto one direction) or `first_view`.
  Which one is best has not been measured.
- **Convolutions** run along the line of each view: tokens are distributed to integer positions, convolved with the
  encoder's weights, and interpolated at their coordinates.
- Encoders without a table have a line of length `line_length`, by default `num_tokens`.
- The class token is in the middle of every view; BEiT and Data2Vec have separate biases for it.
- Register and distillation tokens are left out. Language models attend in both directions. Local attention is not
  windowed: windows follow the order of the words, and a cloud has none.

## What is tested

For every encoder of the table, with small random weights: at integer coordinates each layer has the same output as in
the encoder's own forward pass; all tokens attend to each other; outputs depend on the coordinates but not on the order
of the tokens; gradients are finite, the encoder does not change, and a saved model is loaded with equal outputs.
"""


def encoder_table() -> str:
    """Return the page in Markdown: encoders, composite checkpoints, and unsupported encoders with the reason."""
    lines = [_HEAD, "| encoder | `model_type` | tower | positions | evaluation | layers | tested with |"]
    lines.append("|---|---|---|---|---|---|---|")
    order = {"text": 0, "vision": 1, "audio": 2}
    families = sorted(encoder_families().items(), key=lambda item: order[item[1].tower])
    for model_type, family in families:
        cells = (family.name, f"`{model_type}`", family.tower, family.kind, family.reached, f"`{family.layers}`")
        lines.append(f"| {' | '.join(cells)} | {family.tested} |")
    lines += ["", f"{len(families)} model types.", "", "## Checkpoints with several encoders", ""]
    for model_type, towers in sorted(composite_checkpoints().items()):
        usable = [tower for tower in towers if f"{model_type}_{tower}_model" not in refused_encoders()]
        lines.append(f"- `{model_type}`: " + ", ".join(f'`tower="{tower}"`' for tower in usable))
    lines += ["", _NOTES, "## Not supported", "", "`UnsupportedEncoder` is raised with the reason:", ""]
    reasons: dict[str, list[str]] = {}
    for model_type, reason in refused_encoders().items():
        reasons.setdefault(reason, []).append(f"`{model_type}`")
    lines += [f"- {', '.join(model_types)}: {reason}." for reason, model_types in reasons.items()]
    lines += [
        "- `electra`, `deberta`, `deberta-v2` with embeddings narrower than their layers, `deberta-v2` with a "
        "convolution parallel to its first layer, `dpt` with a convolutional backbone.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(encoder_table())
