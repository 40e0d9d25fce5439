"""Text encoders that are aligned with an encoder which reads points: texts in, unit vectors of the same space out."""

from hf_any3d.modeling.text_towers.registry import TextTowerFamily, find_text_tower, text_tower_families
from hf_any3d.modeling.text_towers.tower import (
    HYPOTHESIS_TEMPLATES,
    TextTower,
    embed_labels,
    fill_templates,
    open_text_tower,
    own_projection,
    text_tower_settings,
)

__all__ = [
    "HYPOTHESIS_TEMPLATES",
    "TextTower",
    "TextTowerFamily",
    "embed_labels",
    "fill_templates",
    "find_text_tower",
    "open_text_tower",
    "own_projection",
    "text_tower_families",
    "text_tower_settings",
]
