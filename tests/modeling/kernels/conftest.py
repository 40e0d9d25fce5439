import pytest

from hf_any3d.modeling.kernels import set_kernels


@pytest.fixture
def use_kernels():
    """`set_kernels` that is undone after the test."""
    before = set_kernels("auto")
    yield set_kernels
    set_kernels(before)
