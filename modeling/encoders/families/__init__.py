"""The supported encoders, one file for each kind of position information; importing a file registers its families."""

from hf_any3d.modeling.encoders.families import audio, refused, relative_text, text, vision  # noqa: F401
