"""Objects of several categories with labeled parts, generated when they are loaded."""

import os
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import trimesh
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, List

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.options import at_least
from hf_any3d.data.parquet.published_dataset import License

# The objects are drawn by this module from boxes and solids of revolution, without a shape of anybody else, so that
# they are under the license of the package.
LICENSE = License("apache-2.0", link="https://www.apache.org/licenses/LICENSE-2.0")
SPLITS = ("train", "validation", "test")

PARTS: dict[str, tuple[str, ...]] = {
    "bottle": ("body", "neck", "cap"),
    "chair": ("seat", "back", "legs"),
    "lamp": ("foot", "pole", "shade"),
    "mug": ("body", "handle"),
    "plane": ("body", "wings", "tail"),
    "table": ("top", "legs"),
}
"""Category -> its parts."""

Part = tuple[str, trimesh.Trimesh]
Uniform = Callable[[float, float], float]


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    train_objects: int = 240,
    validation_objects: int = 60,
    test_objects: int = 120,
    num_points: int = 1024,
    categories: Sequence[str] | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Generate objects; the same arguments give the same objects, and no object occurs twice.

    Rows have `points` (num_points, 3), y up, `labels` (num_points,), a point's part such as "chair back", and
    `label`, the category.

    Args:
        data_dir: must be None; there are no files.
        train_objects: objects of the training split, cycling through the categories.
        validation_objects: objects of the validation split.
        test_objects: objects of the test split.
        num_points: points of an object.
        categories: some of `hf_any3d.data.generated.parts.CATEGORIES`; None takes all.
        seed: seed of proportions and points.
    """
    if data_dir is not None:
        raise ValueError(f"data_dir is {os.fspath(data_dir)!r}; expected None, since these objects are generated")
    categories = list(CATEGORIES) if categories is None else list(categories)
    parts = [f"{category} {part}" for category in categories for part in PARTS[category]]
    features = Features({"points": Array2D((num_points, 3), "float32"), "labels": List(ClassLabel(names=parts))})
    features["label"] = ClassLabel(names=categories)
    splits = {}
    counts = (train_objects, validation_objects, test_objects)
    for number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
        columns: dict[str, list] = {name: [] for name in features}
        for index in range(count):
            category = index % len(categories)
            # A generator for each object: more objects leave the first ones as they are.
            points, names = assemble(categories[category], num_points, np.random.default_rng([seed, number, index]))
            columns["points"].append(points)
            columns["labels"].append([parts.index(f"{categories[category]} {name}") for name in names])
            columns["label"].append(category)
        if count:
            splits[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)


def assemble(
    category: str, num_points: int, generator: np.random.Generator, *, fewest: int = 16
) -> tuple[np.ndarray, list[str]]:
    """Draw one object and sample its surface by area.

    A part gets at least `fewest` points, however thin it is.

    Returns:
        Points (num_points, 3) float32, randomly rotated about the vertical axis and in random order, and the name of
        each point's part.
    """
    names = PARTS[category]
    at_least(fewest * len(names), num_points=num_points)
    drawn = CATEGORIES[category](generator.uniform, lambda n: int(generator.integers(n)))
    # A part may be of several meshes, such as four legs.
    meshes = {
        name: cast(trimesh.Trimesh, trimesh.util.concatenate([mesh for part, mesh in drawn if part == name]))
        for name in names
    }
    areas = np.array([meshes[name].area for name in names])
    # Each part has the fewest points, and the rest are shared out by area.
    counts = fewest + np.floor((num_points - fewest * len(names)) * areas / areas.sum()).astype(int)
    # Rounding down leaves some points over, which the largest part notices least.
    counts[areas.argmax()] += num_points - counts.sum()
    points = [
        PointCloudData(mesh.vertices, faces=mesh.faces).sample_surface(int(count), generator).points
        for mesh, count in zip(meshes.values(), counts, strict=True)
    ]
    order = generator.permutation(num_points)
    angle = generator.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    turned = np.concatenate(points)[order] @ turn.T
    labels = np.repeat(np.arange(len(names)), counts)[order]
    return turned.astype(np.float32), [names[label] for label in labels]


def table(uniform: Uniform, choose: Callable[[int], int]) -> list[Part]:
    """Draw a round or rectangular top on four legs or on a pedestal."""
    height = uniform(0.6, 1.0)
    width = uniform(0.8, 1.8)
    depth = uniform(0.6, 1.0)
    thick = uniform(0.03, 0.08)
    round_top = choose(2) == 1
    pedestal = choose(2) == 1
    depth = width if round_top else depth
    top = _cylinder(width / 2, thick, height) if round_top else _box((width, thick, depth), height)
    if pedestal:
        pole = _cylinder(uniform(0.03, 0.1), height, 0.0)
        foot = _cylinder(uniform(0.2, 0.35), 0.04, 0.0)
        return [("top", top), ("legs", pole), ("legs", foot)]
    reach = 0.32 if round_top else 0.45
    return [("top", top), *_legs(height, reach * width, reach * depth, uniform(0.025, 0.06))]


def chair(uniform: Uniform, choose: Callable[[int], int]) -> list[Part]:
    """Draw a seat, a back, and four legs or a pedestal."""
    height = uniform(0.38, 0.55)
    width = uniform(0.38, 0.55)
    thick = uniform(0.03, 0.09)
    back = uniform(0.35, 0.65)
    base = height + uniform(0.0, 0.12)
    # The back leans about its lower edge.
    lean = trimesh.transformations.rotation_matrix(-uniform(0.0, 0.25), [1, 0, 0], [0, base, -width / 2])
    rest = _box((width * uniform(0.8, 1.0), back, 0.04), base, (0, -width / 2)).apply_transform(lean)
    parts = [("seat", _box((width, thick, width), height)), ("back", rest)]
    if choose(3) == 0:
        foot = _cylinder(width * uniform(0.4, 0.55), 0.03, 0.0)
        return [*parts, ("legs", _cylinder(0.03, height, 0.0)), ("legs", foot)]
    return [*parts, *_legs(height, 0.45 * width, 0.45 * width, uniform(0.02, 0.045))]


def lamp(uniform: Uniform, choose: Callable[[int], int]) -> list[Part]:
    """Draw a foot, a pole, and a shade that opens downwards, held by a cross at its upper rim."""
    height = uniform(0.4, 1.6)
    foot = uniform(0.1, 0.22)
    wide = foot * uniform(1.0, 1.9)
    shade = uniform(0.15, 0.35)
    narrow = wide * uniform(0.4, 0.95)
    base = _cylinder(foot, uniform(0.02, 0.08), 0.0) if choose(2) else _box((2 * foot, uniform(0.02, 0.08), 2 * foot))
    cover = _revolved([(wide, height - shade), (narrow, height)])
    thick = uniform(0.008, 0.025)
    cross = [_box(size, height - 0.01) for size in ((2 * narrow, 0.01, 0.01), (0.01, 0.01, 2 * narrow))]
    pole = _cylinder(thick, height, 0.0)
    return [("foot", base), ("pole", pole), ("shade", cover), *(("shade", bar) for bar in cross)]


def mug(uniform: Uniform, choose: Callable[[int], int]) -> list[Part]:
    """Draw an open body and a handle, a half ring or a square one."""
    height = uniform(0.08, 0.14)
    low = uniform(0.03, 0.05)
    high = low * uniform(0.9, 1.25)
    tube = uniform(0.004, 0.008)
    body = _revolved([(0.0, 0.0), (low, 0.0), (high, height)])
    ring = height * uniform(0.25, 0.38)
    middle = (low + high) / 2 - tube
    if choose(2):
        # The outline of the tube; half a turn of it is the half ring.
        angles = np.linspace(0, 2 * np.pi, 9)
        handle = trimesh.creation.revolve(
            np.stack([ring + tube * np.cos(angles), tube * np.sin(angles)], axis=1), angle=np.pi, sections=24
        )
        # The half ring is in the plane of x and y, its ends on the body.
        handle.vertices = handle.vertices[:, [1, 0, 2]] + [middle, height / 2, 0]
        return [("body", body), ("handle", handle)]
    reach = ring * uniform(0.7, 1.1)
    bars = [
        _box((reach, 2 * tube, 2 * tube), height / 2 + side * ring - tube, (middle + reach / 2, 0)) for side in (-1, 1)
    ]
    upright = _box((2 * tube, 2 * ring, 2 * tube), height / 2 - ring, (middle + reach, 0))
    return [("body", body), *(("handle", piece) for piece in (*bars, upright))]


def bottle(uniform: Uniform, choose: Callable[[int], int]) -> list[Part]:
    """Draw a body, a shoulder with neck, and a cap."""
    radius = uniform(0.03, 0.06)
    height = uniform(0.12, 0.24)
    neck = radius * uniform(0.25, 0.5)
    rise = uniform(0.03, 0.09)
    shoulder = uniform(0.01, 0.05)
    top = height + shoulder + rise
    waist = radius * (uniform(0.75, 0.95) if choose(2) else 1.0)
    body = _revolved([(0.0, 0.0), (radius, 0.0), (waist, height / 2), (radius, height)])
    cap = _cylinder(neck * uniform(1.1, 1.5), uniform(0.012, 0.03), top)
    throat = _revolved([(radius, height), (neck, height + shoulder), (neck, top)])
    return [("body", body), ("neck", throat), ("cap", cap)]


def plane(uniform: Uniform, choose: Callable[[int], int]) -> list[Part]:
    """Draw a body along x, wings, and a tail of fin and stabilizers."""
    length = uniform(1.6, 2.4)
    radius = uniform(0.1, 0.16)
    # Wings above or below the middle of the body, which is at a height of 0.5
    rise = 0.5 + (radius * uniform(0.4, 0.9)) * (1 if choose(2) else -1)
    hull = _revolved([(0.0, 0.0), (radius, 0.2), (radius, length * 0.75), (radius * 0.3, length), (0.0, length)])
    # From y to x. Exchanging two axes turns faces inside out, which does not matter to points drawn by area.
    hull.vertices = hull.vertices[:, [1, 0, 2]] + [-length / 2, 0.5, 0]
    span = uniform(1.6, 2.4)
    chord = uniform(0.25, 0.45)
    sweep = uniform(0.0, 0.4)
    wings = _swept(span, chord, sweep, rise, -0.1 * length)
    tail = length / 2 - 0.15
    stabilizer = _swept(span * uniform(0.3, 0.42), chord * 0.6, sweep, 0.5 + radius * 0.3, tail)
    fin = _box((chord * 0.6, uniform(0.25, 0.45), 0.02), 0.5, (tail, 0))
    return [("body", hull), ("wings", wings), ("tail", stabilizer), ("tail", fin)]


def _box(size: Sequence[float], bottom: float = 0.0, place: Sequence[float] = (0.0, 0.0)) -> trimesh.Trimesh:
    box = trimesh.creation.box(size)
    return box.apply_translation([place[0], bottom + size[1] / 2, place[1]])


def _cylinder(radius: float, height: float, bottom: float) -> trimesh.Trimesh:
    return _revolved([(0.0, bottom), (radius, bottom), (radius, bottom + height), (0.0, bottom + height)])


def _revolved(profile: Sequence[tuple[float, float]]) -> trimesh.Trimesh:
    """Revolve a profile of (radius, height) about y."""
    mesh = trimesh.creation.revolve(np.array(profile), sections=24)
    # trimesh revolves about z. Exchanging the axes in a cycle makes that y without turning faces inside out.
    mesh.vertices = mesh.vertices[:, [1, 2, 0]]
    return mesh


def _legs(height: float, x: float, z: float, thick: float) -> list[Part]:
    legs: list[Part] = []
    for a in (-1, 1):
        for b in (-1, 1):
            legs.append(("legs", _box((thick, height, thick), 0.0, (a * x, b * z))))
    return legs


def _swept(span: float, chord: float, sweep: float, height: float, front: float) -> trimesh.Trimesh:
    """Make a flat swept wing across x."""
    # Subdivided, as a box has no vertices in the middle, where the wing bends.
    wing = trimesh.creation.box((chord, 0.02, span)).subdivide()
    # Farther out, the wing is farther back.
    wing.vertices[:, 0] += sweep * np.abs(wing.vertices[:, 2])
    return wing.apply_translation([front + chord / 2, height, 0])


CATEGORIES: dict[str, Callable[[Uniform, Callable[[int], int]], list[Part]]] = {
    make.__name__: make for make in (bottle, chair, lamp, mug, plane, table)
}
"""Category -> function that draws an object as parts."""
