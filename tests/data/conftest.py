import pytest


@pytest.fixture
def cache_dir(tmp_path):
    """A cache for one test, so that no test sees what another has read."""
    return str(tmp_path / "cache")


@pytest.fixture(autouse=True)
def quiet_progress():
    import datasets

    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
