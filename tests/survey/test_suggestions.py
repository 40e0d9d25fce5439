"""Points to label next: which are chosen, how answers are found again, and what a model learns from them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_any3d.data.files import PointCloudData
from hf_any3d_survey.local_features import LocalFeaturesConfig, LocalFeaturesForPointCloudSegmentation
from hf_any3d_survey.local_features.fitting import Rows, fit_network, keep_rows, logits_of, with_added
from hf_any3d_survey.segmentation.steps import LabeledScan
from hf_any3d_survey.tiles.adding import name_answers
from hf_any3d_survey.tiles.answers import Answers, read_answers, tile_of_each
from hf_any3d_survey.tiles.suggestions import choose_points, suggest_points
from tests.errors import raises

LABELS, WIDTH = 3, 20


def groups(count=600, number=12, seed=0):
    """Features (count, 4) of points in groups, the group of each, and places on a field of 100 m."""
    generator = np.random.default_rng(seed)
    group = np.arange(count) % number
    features = 10 * generator.normal(size=(number, 4))[group] + 0.1 * generator.normal(size=(count, 4))
    return features.astype(np.float32), group, generator.uniform(0, 100, (count, 3)) * (1, 1, 0.05)


def test_each_group_of_like_points_has_one_and_none_are_next_to_each_other():
    features, group, places = groups()
    chosen = choose_points(features, places, 12, spread=8.0)
    assert sorted(group[chosen]) == list(range(12))
    apart = np.linalg.norm(places[chosen][:, None] - places[chosen][None], axis=2)
    assert apart[~np.eye(12, dtype=bool)].min() >= 8
    assert np.array_equal(chosen, choose_points(features, places, 12, spread=8.0)), "the same each time"
    assert not np.array_equal(chosen, choose_points(features, places, 12, spread=8.0, seed=1))


def test_as_many_as_asked_for_are_chosen_also_where_all_points_are_close():
    features, _, places = groups(count=60)
    chosen = choose_points(features, places / 100, 40, spread=8.0)
    assert len({*chosen.tolist()}) == 40


class Pipe:
    """A pipeline that is not sure in one half of a field."""

    feature_extractor = SimpleNamespace(split_far=lambda cloud: (cloud, None))

    def label_with_features(self, cloud, drawn):
        count = len(cloud)
        margins = np.where(cloud.points[:, 0] < 50, 0.1, 0.9).astype(np.float32)
        noise = np.zeros(count, bool)
        noise[::7] = True
        features = cloud.points[drawn]
        zeros = np.zeros(count, np.int64)
        return LabeledScan(
            zeros, margins, margins, drawn, features, cloud.points.astype(float), cloud.points[:, 2], noise, True
        )


def test_points_are_suggested_where_the_model_is_not_sure():
    points = np.random.default_rng(0).uniform(0, 100, (4000, 3)) * (1, 1, 0.05)
    withheld = np.arange(4000) % 5 == 0
    cloud = PointCloudData(points, further={"withheld": withheld})
    found = suggest_points(Pipe(), cloud, 50)
    assert len({*found.rows.tolist()}) == 50 and (cloud.points[found.rows, 0] < 50).all()
    assert not withheld[found.rows].any() and (found.rows % 7 != 0).all(), "neither deleted points nor noise"
    assert np.array_equal(found.rows, suggest_points(Pipe(), cloud, 50).rows)
    with raises(ValueError, naming="5000 points to suggest"):
        suggest_points(Pipe(), cloud, 5000)


def config_of(**settings):
    names = {0: "ground", 1: "vegetation", 2: "building"}
    codes = {"class_codes": [2, 5, 6], "learned_codes": [[2], [3, 4, 5], [6]]}
    return LocalFeaturesConfig(in_channels=3 + WIDTH, id2label=names, members=2, **codes, **settings)


def answers_of(tmp_path, classes, tiles=None):
    count = len(classes)
    return Answers(tmp_path / "answers.csv", tiles or [""] * count, np.arange(count), np.zeros((count, 3)), classes)


def test_classes_are_those_of_the_model_by_any_of_their_names_or_codes(tmp_path):
    named = name_answers(answers_of(tmp_path, ["Ground", "low vegetation", 4, "building", 6]), config_of())
    assert named.labels.tolist() == [0, 1, 1, 2, 2] and named.new == []


def test_a_class_is_added_if_it_has_points_enough_to_be_no_slip(tmp_path):
    named = name_answers(answers_of(tmp_path, ["ground", *["water"] * 10, *["my car"] * 12]), config_of())
    assert named.names[3:] == named.new == ["water", "my car"] and named.codes[3:] == [9, 64]
    assert named.members[3:] == [[9], [64]]
    with raises(ValueError, naming="class 'grond' is new"):
        name_answers(answers_of(tmp_path, ["ground"] * 30 + ["grond"] * 2), config_of())


def test_answers_are_found_by_row_and_coordinates_and_a_changed_tile_is_an_error(tmp_path):
    points = np.random.default_rng(0).uniform(0, 50, (100, 3)) + (500_000, 5_000_000, 100)
    tiles = {tmp_path / "a.laz": PointCloudData(points), tmp_path / "b.laz": PointCloudData(points[::-1].copy())}
    rows = [7, 90]
    lines = [
        f"{name},{row},{points[row][0]:.3f},{points[row][1]:.3f},{points[row][2]:.3f},ground"
        for name in ("a.laz",)
        for row in rows
    ]
    path = tmp_path / "answers.csv"
    path.write_text("tile,row,x,y,z,class\n" + "\n".join([*lines, "a.laz,3,0,0,0,"]) + "\n")
    answers = read_answers(path)
    assert len(answers) == 2, "a point without a class has no answer"
    assert tile_of_each(answers, tiles, in_meters=True).tolist() == [0, 0]
    changed = {tmp_path / "a.laz": PointCloudData(points[1:])}
    with raises(ValueError, naming="row 7 of a.laz is not at"):
        tile_of_each(answers, changed, in_meters=True)
    with raises(ValueError, naming="its points belong to a.laz"):
        tile_of_each(answers, {tmp_path / "b.laz": tiles[tmp_path / "b.laz"]}, in_meters=True)
    path.write_text("tile,row,x,y,z,class\na.laz,seven,1,2,3,ground\n")
    with raises(ValueError, naming="line 2"):
        read_answers(path)
    path.write_text("tile,row,x,y,class\n")
    with raises(ValueError, naming="no column 'z'"):
        read_answers(path)


def drawn(count, shift=0.0, seed=0):
    """Features of points of three classes, and the classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, LABELS, count)
    features = generator.normal(0, 1, (count, WIDTH)) + (6 * labels[:, None] + shift) / np.sqrt(WIDTH)
    return features.astype(np.float32), labels


def rows_of(features, labels, places=1):
    place = np.arange(len(labels)) % places
    return Rows(features, labels, place, place, np.zeros(len(labels), int))


@pytest.fixture(scope="module")
def model():
    found = fit_network(rows_of(*drawn(3000), places=4), config_of(), steps=150)
    keep_rows(found, rows_of(*drawn(3000), places=4), seed=0)
    return found


def right(model, features, labels):
    return (logits_of(model, features)[0].argmax(axis=1) == labels).mean()


def test_added_points_teach_their_place_and_what_was_learned_stays(model, tmp_path):
    clicked, there, before = drawn(60, 3.0, seed=1), drawn(3000, 3.0, seed=2), drawn(3000, seed=3)
    found = with_added(model, rows_of(*clicked), model.config)
    assert right(found, *there) > right(model, *there) + 0.05
    assert right(found, *before) > right(model, *before) - 0.03
    assert found.config.learned_rows == model.config.learned_rows + 60
    assert torch.equal(found.learned.features[-60:], torch.from_numpy(clicked[0]))
    found.save_pretrained(tmp_path)
    again = LocalFeaturesForPointCloudSegmentation.from_pretrained(tmp_path)
    more = with_added(again, rows_of(*drawn(30, seed=4)), again.config)
    # The four places, that of the first points, and that of the second
    assert more.learned.places.unique().tolist() == list(range(6))


def test_a_new_class_is_learned_beside_the_others(model):
    features, labels = drawn(60, seed=5)
    new = np.random.default_rng(6).normal(0, 1, (40, WIDTH)).astype(np.float32) - 3
    config = LocalFeaturesConfig.from_dict(
        model.config.to_dict()
        | {"id2label": {**dict(model.config.id2label), 3: "car"}, "class_codes": [2, 5, 6, 64], "learned_codes": None}
    )
    both = np.concatenate([features, new[:30]]), np.concatenate([labels, np.full(30, 3)])
    found = with_added(model, rows_of(*both), config)
    assert found.config.num_labels == 4 and right(found, new[30:], np.full(10, 3)) == 1
    assert right(found, *drawn(2000, seed=7)) > 0.9


def test_a_model_without_stored_rows_is_refused():
    bare = SimpleNamespace(learned=None)
    with raises(ValueError, naming="no training points"):
        with_added(bare, rows_of(*drawn(10)), config_of())
