"""Processors that the process may use, by the limits of control groups."""

import os

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


@pytest.mark.parametrize(
    ("own", "available", "expected"),
    [
        ({}, 2, {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"}),
        ({}, 8, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "5"}, 2, {}),
    ],
)
def test_settings_of_the_user_win_and_torch_must_not_be_loaded(own, available, expected, monkeypatch):
    environment = dict(own)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(threads, "available_processors", lambda: available)
    monkeypatch.setattr(threads, "_in_affinity", lambda: 8)
    threads.share_processors()
    assert environment == own
    monkeypatch.setattr(threads.sys, "modules", {})
    threads.share_processors()
    assert environment == {**expected, **own}
