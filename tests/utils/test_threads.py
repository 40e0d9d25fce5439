"""Processors that the process may use, by the limits of control groups."""

import pytest

from hf_any3d.utils import threads

V1, V2 = "3:cpuset:/\n1:cpu,cpuacct:/docker/box\n", "0::/user/box\n"


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        (V2, {"user/box/cpu.max": "150000 100000"}, [1.5]),
        (V2, {"user/box/cpu.max": "max 100000", "user/cpu.max": "400000 100000"}, [4.0]),
        (V2, {"cpu.max": "200000 100000"}, [2.0]),  # in a container, whose group is the root
        (V1, {"cpu/docker/box/cpu.cfs_quota_us": "-1", "cpu/docker/box/cpu.cfs_period_us": "100000"}, []),
        (V1, {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, [0.5]),
        ("2:memory:/\n", {"cpu.max": "1 1"}, []),
    ],
)
def test_limits_of_a_group_and_of_those_around_it_are_read(groups, files, limits, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert list(threads.processor_limits(groups, tmp_path)) == limits
