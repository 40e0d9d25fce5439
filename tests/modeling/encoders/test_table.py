from pathlib import Path

from hf_any3d.modeling.encoders import encoder_families, refused_encoders
from hf_any3d.modeling.encoders.table import encoder_table

PAGE = Path(__file__).resolve().parents[3] / "docs" / "encoders.md"


def test_committed_page_is_what_the_registry_says():
    assert PAGE.read_text(encoding="utf-8") == encoder_table(), (
        "run `python -m hf_any3d.modeling.encoders.table > docs/encoders.md`"
    )


def test_page_has_a_row_for_every_encoder_and_a_reason_for_every_refused_one():
    page = encoder_table()
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert [sum(f"| `{model_type}` |" in row for row in rows) for model_type in encoder_families()] == [1] * len(rows)
    assert all(f"`{model_type}`" in page and reason in page for model_type, reason in refused_encoders().items())
