"""Extensions that are installed beside the package: tests of what both do together are left out without them."""

from importlib.util import find_spec

HAS_SURVEY = find_spec("hf_any3d_survey") is not None
"""Whether `survey/` is installed."""
