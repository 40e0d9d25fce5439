"""The benchmark of data: all ways read all clouds, cut and augmented alike."""

import torch

from studies.speed import data_throughput


def test_all_ways_give_centered_clouds_of_unit_size(tmp_path):
    ways = data_throughput.build(tmp_path, 9, 1100)
    for rows in ways.values():
        clouds, wall, cpu = data_throughput.read_all(rows, 0, batch_size=4)
        assert clouds == 9 and wall > 0 and cpu >= 0
        for row in rows:
            distance = torch.as_tensor(row["points"]).norm(dim=1).max()
            assert 0.75 < distance < 1.35  # a unit sphere, scaled by 0.8 to 1.25 and jittered
