"""Lets the programs here import what lies beside their folder: the recipe and what keeps runs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
