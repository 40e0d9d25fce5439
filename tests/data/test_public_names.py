import pytest

import hf_any3d.data
from tests.errors import raises


@pytest.mark.parametrize("name", hf_any3d.data.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(hf_any3d.data, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with raises(AttributeError, naming="'hf_any3d.data'"):
        _ = hf_any3d.data.load
