"""Pages that are tables of what is registered are what the registries give."""

import pytest

from docs.tools.tables import DOCS, PAGES, encoders_page, formats_page, licenses_page, models_page
from hf_any3d.data.files import supported_file_types
from hf_any3d.hub.published_table import PUBLISHED
from hf_any3d.integration.registration import MODELS, PIPELINES
from hf_any3d.modeling.encoders import encoder_families
from hf_any3d.registry import DATASETS
from tests.any_encoders import stored_verdicts
from tests.extensions import HAS_SURVEY


@pytest.mark.parametrize("name", PAGES)
def test_committed_page_is_what_the_registries_give(name):
    if name in ("models.md", "settings.md") and not HAS_SURVEY:
        pytest.skip("what survey/ brings is on it")
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run `python -m docs.tools.tables`"


def test_every_encoder_has_one_row_and_every_refused_one_a_reason():
    page = encoders_page()
    declared = page[page.index("## Declared families") :]
    rows = [line for line in declared.splitlines() if line.startswith("| ")][1:]
    assert [sum(f"| `{model_type}` |" in row for row in rows) for model_type in encoder_families()] == [1] * len(rows)
    assert all(f"`{row.model_type}`" in page for row in stored_verdicts().values())
    assert all(row.reason.replace("|", r"\|") in page for row in stored_verdicts().values())


def test_every_model_pipeline_format_and_dataset_has_a_row():
    models = models_page()
    for base, heads in MODELS.values():
        for model in (base, *(model for some in heads.values() for model in some)):
            assert f"| `{model.__name__}` |" in models
    assert all(f"| `{task}` |" in models for task in PIPELINES)
    assert all(f"`.{name}`" in formats_page() for name in supported_file_types())
    assert all(f"| `{name}` |" in licenses_page() for name in DATASETS)
    sizes = sum(len(published.files) for published in PUBLISHED.values())
    assert sum(PAGES["published.md"]().count(f"| `{name}") for name in PUBLISHED) == sizes
