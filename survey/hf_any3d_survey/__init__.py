"""Scans of places: labels learned from a few tiles, ground, heights, trees and buildings by number.

An extension of hf_any3d, which finds it by its entry point.
"""

# First, so that hf_any3d reads `about.py`, whichever of the two is imported.
import hf_any3d  # noqa: F401
from hf_any3d_survey.version import __version__ as __version__
