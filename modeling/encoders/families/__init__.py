"""The supported encoders that the rule does not serve, one file per tower, registered on import."""

from hf_any3d.modeling.encoders.families import audio, text, vision  # noqa: F401  each registers its families
