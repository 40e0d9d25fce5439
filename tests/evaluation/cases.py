"""The stored text cases of MiniGPT-3D."""

import json
from pathlib import Path

CASES = json.loads((Path(__file__).parents[1] / "reference" / "minigpt3d_text.json").read_text(encoding="utf-8"))
