"""The timing of aligned encoders measures the parts of small ones."""

import pytest

from studies.speed.aligned_encoders import measure
from tests.tiny_aligned import OWN, SMALL


@pytest.mark.parametrize("preset", ["openshape", "uni3d-base", "patchalign3d"])
def test_parts_of_an_encoder_are_timed(preset):
    found = measure(preset, 1, 60, 1, **SMALL | OWN[preset.partition("-")[0]])
    rows = found["rows"]
    assert rows["bare blocks"]["times_bare"] == 1 and found["groups"] == SMALL["num_groups"]
    assert set(rows) == {"bare blocks", "whole encoder", "centers", "centers and patches", "layers of the patches"}
    assert all(row["ms_per_cloud"] > 0 for row in rows.values())
