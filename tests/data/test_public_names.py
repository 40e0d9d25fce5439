import subprocess
import sys

import pytest

import hf_any3d.data


@pytest.mark.parametrize("name", hf_any3d.data.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(hf_any3d.data, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'hf_any3d.data' has no attribute 'load'"):
        _ = hf_any3d.data.load


def test_transforms_and_collator_work_without_importing_datasets():
    code = (
        "import sys\n"
        "from hf_any3d.data import PointCloudCollator, build_transform\n"
        "PointCloudCollator(4, build_transform(['jitter']))([{'points': [[0, 0, 0], [1, 1, 1]]}])\n"
        "assert 'datasets' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
