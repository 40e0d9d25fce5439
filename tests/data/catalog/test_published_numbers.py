"""Numbers of the published datasets, as their papers, files and programs have them."""

from hf_any3d.data.catalog import nuscenes, s3dis, semantickitti
from hf_any3d.data.parquet.rows import IGNORED


def test_each_area_of_s3dis_is_tested_on_once():
    rooms = {1: 44, 2: 40, 3: 23, 4: 49, 5: 68, 6: 48}
    expected = {f"area_{area}": {"train": 272 - count, "test": count} for area, count in rooms.items()}
    expected |= {f"area_{area}_blocks": {"test": count} for area, count in rooms.items()}
    assert s3dis.DATASET.expected_counts == expected


PUBLISHED = (0, 0, 1, 2, 5, 3, 5, 4, 5, 6, 7, 8, 9, 10, 11)


def test_numbers_of_semantickitti_are_the_classes_of_its_benchmark():
    # learning_map of semantic-kitti.yaml, whose class 0 is not judged.
    published = dict(zip((0, 1, 10, 11, 13, 15, 16, 18, 20, 30, 31, 32, 40, 44, 48), PUBLISHED, strict=True))
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
