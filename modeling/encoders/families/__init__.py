"""The supported encoders, one file for each way in which they tell places."""

from hf_any3d.modeling.encoders.families import (  # noqa: F401  each registers its families
    audio,
    refused,
    relative_text,
    relative_vision,
    rotary_text,
    speech,
    text,
    vision,
)
