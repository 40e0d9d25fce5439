"""Augmentations of the published training runs of 3DETR, on ScanNet and SUN RGB-D."""

import math

from hf_any3d.data.annotations.boxes import Changes, DrawPoints, RandomCuboid, RandomFlip, RandomSize, RandomTurn


def published_changes(dataset: str, num_points: int, min_points: int = 30_000) -> Changes:
    draw = DrawPoints(num_points)
    if dataset == "scannet":
        flips = [RandomFlip(axis, along_axes=True) for axis in "xy"]
        return Changes([RandomCuboid(min_points), draw, *flips, RandomTurn(math.pi / 36, along_axes=True)])
    cuboid = RandomCuboid(min_points, smallest=0.75, aspect=0.75)
    return Changes([RandomFlip("x"), RandomTurn(math.pi / 6), RandomSize(), cuboid, draw])
