"""Cut scenes into overlapping blocks for a model, and merge the predictions of blocks."""

import numpy as np

from hf_any3d.data.options import one_of
from hf_any3d.data.point_arrays import resample_index
from hf_any3d.data.transforms import AXES

_DRAWS = 10
# Beyond it, places in the scene have too few digits to tell the columns apart.
_MOST_STARTS = 2**40


def split_into_blocks(
    xyz: np.ndarray,
    num_points: int,
    block_size: float | None = None,
    overlap: float = 0.5,
    *,
    up_axis: str = "y",
    generator: np.random.Generator | int = 0,
) -> np.ndarray:
    """Cut a scene into blocks of equally many points that together cover every point.

    Blocks are square columns over the ground, as high as the scene. A column with more points than `num_points` gives
    several blocks, each spread over the whole column; the last one is filled with points of other blocks of the
    column. A column with fewer points repeats some.

    Args:
        xyz: (points, 3).
        num_points: points of a block.
        block_size: edge of a column, in the units of `xyz`; None takes the whole scene as one column.
        overlap: share of a column's edge that it has in common with the next one, at least 0 and less than 1.
        up_axis: "x", "y" or "z".
        generator: assigns the points of a column to blocks; a generator or a seed.

    Returns:
        (blocks, num_points) int64, indices into `xyz`.

    Raises:
        ValueError: `block_size` is not above 0, `overlap` is out of range, or `up_axis` is no axis.
    """
    xyz = np.asarray(xyz)
    generator = np.random.default_rng(generator)
    ground = _ground(xyz, up_axis)
    columns = [np.arange(len(xyz))] if block_size is None else _columns(ground, block_size, overlap)
    blocks = []
    for column in columns:
        if len(column) <= num_points:
            blocks.append(column[resample_index(len(column), num_points, generator)][None])
            continue
        # In random order, so that every block is a sample of the complete column.
        order = generator.permutation(column)
        # The first points fill the last block, which does not contain them.
        filled = np.concatenate([order, order[: -len(order) % num_points]])
        blocks.append(filled.reshape(-1, num_points))
    return np.concatenate(blocks)


def draw_crop(
    xyz: np.ndarray,
    num_points: int,
    block_size: float | None,
    generator: np.random.Generator,
    *,
    up_axis: str = "y",
    min_points: int = 1,
) -> np.ndarray:
    """Draw indices (num_points,) of a block of a scene `xyz` (points, 3) for training; some repeat if it has fewer.

    `block_size` is the edge of the square column around a random point, in the units of `xyz`; None for the whole
    scene. A column with fewer than `min_points` is drawn again, up to ten times; then the fullest is taken.
    """
    inside = np.arange(len(xyz))
    if block_size is not None:
        ground = _ground(np.asarray(xyz), up_axis)
        inside = inside[:0]
        for _ in range(_DRAWS):
            # Around a random point, not at a random place, which may be empty; dense parts are drawn more often.
            near = np.abs(ground - ground[generator.integers(len(ground))]).max(axis=1) <= block_size / 2
            # The largest so far, in case no block has enough points.
            inside = max(inside, np.flatnonzero(near), key=len)
            if len(inside) >= min_points:
                break
    return inside[resample_index(len(inside), num_points, generator)]


def merge_blocks(index: np.ndarray, logits: np.ndarray, num_points: int) -> np.ndarray:
    """Average the logits of blocks (blocks, block_points, labels) over the points that they share.

    `index` (blocks, block_points) is from `split_into_blocks`. The result is (num_points, labels) float64.
    """
    index = np.asarray(index)
    logits = np.asarray(logits)
    if logits.shape[:2] != index.shape:
        raise ValueError(f"logits are {logits.shape}; expected {(*index.shape, 'labels')}")
    places = index.reshape(-1)
    seen = np.bincount(places, minlength=num_points)
    if len(seen) > num_points or not seen.all():
        missing = int((seen[:num_points] == 0).sum())
        raise ValueError(f"index leaves out {missing} of {num_points} points, or has points beyond them")
    flat = logits.reshape(len(places), -1)
    # One bincount per label is many times faster than np.add.at on rows.
    total = [np.bincount(places, weights=flat[:, label], minlength=num_points) for label in range(flat.shape[1])]
    return np.stack(total, axis=1) / seen[:, None]


def bounds_of(xyz: np.ndarray) -> np.ndarray:
    """Return the lowest and highest coordinates (2, 3) of a scene (points, 3)."""
    return np.stack([xyz.min(axis=0), xyz.max(axis=0)])


def _ground(xyz: np.ndarray, up_axis: str) -> np.ndarray:
    one_of("up_axis", up_axis, AXES)
    return xyz[:, [axis for axis in range(3) if axis != AXES[up_axis]]]  # (points, 2)


def _columns(ground: np.ndarray, block_size: float, overlap: float) -> list[np.ndarray]:
    """Return the points of each non-empty column."""
    if not (block_size > 0 and 0 <= overlap < 1):
        raise ValueError(f"block_size is {block_size}, overlap {overlap}; expected above 0, and from 0 to below 1")
    stride = block_size * (1 - overlap)
    ends = [(float(values.min()), float(values.max())) for values in ground.T]
    columns = []
    for first in _starts(ground[:, 0], *ends[0], block_size, stride):
        # Columns of a strip are searched among its points alone.
        strip = np.flatnonzero((ground[:, 0] >= first) & (ground[:, 0] <= first + block_size))
        if not len(strip):
            continue
        for second in _starts(ground[strip, 1], *ends[1], block_size, stride):
            inside = (ground[strip, 1] >= second) & (ground[strip, 1] <= second + block_size)
            if inside.any():
                columns.append(strip[inside])
    return columns


def _starts(values: np.ndarray, low: float, high: float, block_size: float, stride: float) -> np.ndarray:
    """Return where the columns of a scene from `low` to `high` start, without those that are far from all `values`.

    A far point, or a scene in millimeters, has more empty columns than can be looked through.
    """
    # In double precision, and slightly wider at both ends, so that rounding leaves no point outside.
    slack = 1e-6 * max(abs(low), abs(high), block_size)
    count = 1 + max(0, int(np.ceil((high - low + 2 * slack - block_size) / stride)))
    if count > _MOST_STARTS:
        raise ValueError(f"points from {low:g} to {high:g}; expected block_size in the same units, not {block_size:g}")
    start = low - slack
    if count <= len(values):
        return start + stride * np.arange(count)
    last = np.unique(((values.astype(np.float64) - start) // stride).astype(np.int64))
    # One more at both ends, as rounding may put a point on either side of an edge.
    reach = np.arange(-int(np.ceil(block_size / stride)) - 1, 2)
    near = np.unique(last[:, None] + reach)
    return start + stride * near[(near >= 0) & (near < count)]
