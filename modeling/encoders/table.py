"""The page of supported encoders, written from the registry: `python -m hf_any3d.modeling.encoders.table`."""

from __future__ import annotations

import sys

from hf_any3d.modeling.encoders import composite_checkpoints, encoder_families, refused_encoders

_HEAD = """# Encoders

Any2Point reads point clouds through the frozen layers of these pretrained encoders. Tokens are projected into six
views; the table says what positions an encoder learned and how places in the views reach them. Places are continuous.

This page is written by `python -m hf_any3d.modeling.encoders.table > docs/encoders.md`.
"""
_NOTES = """## How places reach positions

- **Tables** (words on a line, patches on a grid, sinusoids) are read between their entries and averaged over the
  views.
- **Relative biases** are read at the distance of two tokens' places, between whole distances, and averaged over the
  views. DeBERTa's scores depend on content and distance together: distances are rounded, the one exception to
  continuous places, and each head reads one view.
- **Rotary** encoders turn queries and keys by the places themselves. `rotary_views` says what becomes of several
  views: `split_frequencies` (default; frequencies take turns, so that every head knows every view), `split_heads`,
  `mean_angle` (on a line the mean place tells one direction of space only) or `first_view`. Which one reads best has
  not been measured.
- **Convolutions** run along the line of each view: tokens are spread onto whole places, convolved by the encoder's own
  weights, and read back where they stand.
- Encoders without a table have a line of `line_length` places, `num_tokens` by default.
- The class token has no place. It stands in the middle of every view; BEiT and Data2Vec have biases of its own for it.
- Register and distillation tokens are left out. Language models attend in both directions. Windows of local attention
  are not cut: they follow the order of the words, and a cloud has none.

## What is tested

Of every encoder of the table, with small random weights: at whole places each layer gives what it gives in the
encoder's own forward pass; every token sees every other; the order of tokens means nothing; places do; gradients are
finite, the encoder stays as it was, and a saved model comes back equal.
"""


def encoder_table() -> str:
    """The page in Markdown: encoders, composite checkpoints, and what is refused with the reason."""
    lines = [_HEAD, "| encoder | `model_type` | tower | positions | how places reach them | layers | tested with |"]
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
    lines += ["", _NOTES, "## Not supported", "", "`UnsupportedEncoder` says why:", ""]
    reasons: dict[str, list[str]] = {}
    for model_type, reason in refused_encoders().items():
        reasons.setdefault(reason, []).append(f"`{model_type}`")
    lines += [f"- {', '.join(model_types)}: {reason}." for reason, model_types in reasons.items()]
    lines += [
        "- `electra`, `deberta`, `deberta-v2` with embeddings narrower than their layers, `deberta-v2` with a "
        "convolution beside its first layer, `dpt` with a convolutional backbone.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(encoder_table())
