from pathlib import Path

import pytest

FILES = Path(__file__).parents[2] / "files"


@pytest.fixture(scope="session")
def files() -> Path:
    """The folder of small real meshes and clouds."""
    return FILES


@pytest.fixture(autouse=True)
def quiet_progress():
    """Readers show no progress: in place of the fixture that imports datasets, which takes seconds."""
