"""Numbers of the published datasets, as their papers, files and programs have them."""

from importlib import import_module

import pytest

from hf_any3d.data.catalog import nuscenes, s3dis, semantickitti
from hf_any3d.data.parquet.rows import IGNORED

MODELNET = {"train": 9843, "test": 2468}
CONVERSATIONS = ("brief", "complex", "detailed", "single_round", "multi_round")
COUNTS = {
    "modelnet40": {"txt": MODELNET, "pickle": MODELNET, "off": MODELNET, "h5": {"train": 9840, "test": 2468}},
    "modelnet40_fewshot": {
        "5way_10shot": {"train": 50, "test": 100},
        "5way_20shot": {"train": 100, "test": 100},
        "10way_10shot": {"train": 100, "test": 200},
        "10way_20shot": {"train": 200, "test": 200},
    },
    "modelnet40_generative": {"default": {"test": 2468}},
    "nuscenes": {
        "v1.0-trainval": {"train": 28130, "validation": 6019},
        "v1.0-mini": {"train": 323, "validation": 81},
    },
    "objaverse_captions": {which: {"test": 200} for which in CONVERSATIONS},
    "scannet_detection": {"default": {"train": 1201, "validation": 312}},
    "scanobjectnn": {
        "obj_bg": {"train": 2309, "test": 581},
        "obj_only": {"train": 2309, "test": 581},
        "pb_t50_rs": {"train": 11416, "test": 2882},
        "pb_t50_rs_nobg": {"train": 11416, "test": 2882},
    },
    "shapenet55": {
        "55": {"train": 41952, "test": 10518},
        "34": {"train": 46765, "test": 3400},
        "21": {"test": 2305},
    },
    "shapenetpart": {"default": {"train": 12137, "validation": 1870, "test": 2874}},
    "sunrgbd": {"default": {"train": 5285, "validation": 5050}},
}
CLASSES = {
    **{"modelnet40": 40, "modelnet40_fewshot": 40, "modelnet40_generative": 40, "nuscenes": 16},
    **{"objaverse_captions": 0, "scannet_detection": 18, "scanobjectnn": 15, "shapenet55": 55, "shapenetpart": 16},
    "sunrgbd": 10,
}


@pytest.mark.parametrize("name", COUNTS)
def test_splits_have_the_published_numbers_of_clouds_and_classes(name):
    dataset = import_module(f"hf_any3d.data.catalog.{name}").DATASET
    assert dataset.name == name and dataset.expected_counts == COUNTS[name]
    assert len(dataset.class_names) == len(set(dataset.class_names)) == CLASSES[name]


def test_each_area_of_s3dis_is_tested_on_once():
    rooms = {1: 44, 2: 40, 3: 23, 4: 49, 5: 68, 6: 48}
    expected = {f"area_{area}": {"train": 272 - count, "test": count} for area, count in rooms.items()}
    expected |= {f"area_{area}_blocks": {"test": count} for area, count in rooms.items()}
    assert s3dis.DATASET.expected_counts == expected


def test_numbers_of_semantickitti_are_the_classes_of_its_benchmark():
    # learning_map of semantic-kitti.yaml, whose class 0 is not judged.
    published = {
        0: 0,
        1: 0,
        10: 1,
        11: 2,
        13: 5,
        15: 3,
        16: 5,
        18: 4,
        20: 5,
        30: 6,
        31: 7,
        32: 8,
        40: 9,
        44: 10,
        48: 11,
    }
    published |= {49: 12, 50: 13, 51: 14, 52: 0, 60: 9, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 99: 0, 252: 1, 253: 7}
    published |= {254: 6, 255: 8, 256: 5, 257: 5, 258: 4, 259: 5}
    assert semantickitti.LEARNING_MAP == {
        number: label - 1 if label else IGNORED for number, label in published.items()
    }
    sweeps = [4541, 1101, 4661, 801, 271, 2761, 1101, 1101, 4071, 1591, 1201]
    assert semantickitti.SPLITS == {"train": (0, 1, 2, 3, 4, 5, 6, 7, 9, 10), "validation": (8,)}
    counts = {split: sum(sweeps[number] for number in numbers) for split, numbers in semantickitti.SPLITS.items()}
    assert semantickitti.DATASET.expected_counts == {"default": counts}


def test_scenes_of_validation_of_nuscenes_are_those_of_its_program():
    whole, mini = (nuscenes.VERSIONS[version][1] for version in ("v1.0-trainval", "v1.0-mini"))
    numbers = [number for first, last in whole for number in range(first, last + 1)]
    assert (len(numbers), sum(numbers), sum(number**2 % 1009 for number in numbers)) == (163, 98736, 80314)
    assert numbers == sorted(set(numbers)) and mini == ((103, 103), (916, 916))
