import pytest

import hf_any3d.data


@pytest.mark.parametrize("name", hf_any3d.data.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(hf_any3d.data, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'hf_any3d.data' has no attribute 'load'"):
        _ = hf_any3d.data.load
