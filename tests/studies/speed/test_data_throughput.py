"""The benchmark of data: all ways read all clouds, cut and augmented alike."""

import json

import torch

from studies.speed import data_throughput


def test_every_way_reads_every_cloud_and_is_reported(tmp_path, monkeypatch, capsys):
    output = tmp_path / "report.json"
    options = ["--clouds", "20", "--points", "1100", "--workers", "0", "--passes", "1", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["data_throughput.py", *options])
    threads = torch.get_num_threads()
    try:
        data_throughput.main()
    finally:
        torch.set_num_threads(threads)
    measured = json.loads(output.read_text())["measured"]
    assert len(measured) == 5 == len({row["rows"] for row in measured})
    assert all(row["clouds_per_second"] > 0 and row["cpu_per_1000"] > 0 for row in measured)
    assert capsys.readouterr().out.count("clouds/s") == 5


def test_all_ways_give_centered_clouds_of_unit_size(tmp_path):
    ways = data_throughput.build(tmp_path, 9, 1100)
    for rows in ways.values():
        clouds, wall, cpu = data_throughput.read_all(rows, 0, batch_size=4)
        assert clouds == 9 and wall > 0 and cpu >= 0
        for row in rows:
            distance = torch.as_tensor(row["points"]).norm(dim=1).max()
            assert 0.75 < distance < 1.35  # a unit sphere, scaled by 0.8 to 1.25 and jittered
