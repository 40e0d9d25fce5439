from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "studies" / "results"
