"""Polygons of mesh files as triangles inside of their outlines."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from hf_any3d.data.files.point_cloud import check_corners
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import integers

# Share of a polygon's area that its triangles may have beyond its outline, as coordinates are rounded.
_ROUNDING = 1e-6
# Share of the square of a polygon's extent below which it has no area.
_NO_AREA = 1e-12
# Corners of polygons that are looked at together, so that what is computed of them stays in the cache.
_CORNERS_AT_ONCE = 1 << 14
# First corners of which fans are tried before a polygon is cut ear by ear.
_FANS = 8
# Corners that are compared with a triangle one by one, and how many times faster more are as arrays.
_FEW, _FASTER = 64, 64
# Comparisons one by one in a file, some 20 seconds.
_MOST_WORK = 3 * 10**7


def polygon_triangles(
    counts: np.ndarray, corners: np.ndarray, points: Sequence[np.ndarray], source: Source
) -> tuple[np.ndarray, np.ndarray]:
    """Cut polygons into triangles that cover them and nothing else, within the limits of a file.

    A polygon becomes a fan of triangles around its first corner, as convex ones are cut by all programs. Where these
    reach beyond its outline, it is a fan around another corner, or is cut ear by ear. A polygon that is not flat is
    seen from the side that shows most of it. Those that cross themselves, repeat a corner or have no area are counted
    in a warning: their triangles cover all of them, and perhaps more.

    Args:
        counts: (polygons,) number of corners of each polygon; fewer than three give no triangle.
        corners: (sum of counts,) the corners of all polygons.
        points: x, y and z of all points, (points,) each.
        source: the file, for its limits and warnings.

    Returns:
        Triangles (triangles, 3) int64 and the polygon each was cut from (triangles,) int64.

    Raises:
        PointCloudError: A corner is no point, the limits are exceeded, or an outline is too intricate to be cut.
    """
    cutter = _Cutter(points, source)
    least = int(counts.min()) if len(counts) else 0
    # Most meshes have triangles alone, or quads.
    if least > 2 and least == counts.max():
        total = (least - 2) * len(counts)
        source.check(faces=total, decoded=24 * total)
        table = integers(corners, "a face refers to point").reshape(-1, least)
        faces = np.take(table, _fan(least).reshape(-1), axis=1)
        some, cut = cutter.cut(table)
        faces[some] = cut
        cutter.tell(len(table))
        return faces.reshape(-1, 3), np.repeat(np.arange(len(table)), least - 2)
    kept = np.flatnonzero(counts > 2)  # millions may have no triangle
    starts = counts.cumsum(dtype=np.int64)[kept]
    counts = counts[kept].astype(np.int64)
    starts -= counts
    triangles = counts - 2
    total = int(triangles.sum())
    # Checked before the triangles are made: three int64 numbers each.
    source.check(faces=total, decoded=24 * total)
    corners = integers(corners, "a face refers to point")
    firsts = triangles.cumsum() - triangles
    # The n-th triangle of a fan has the corners 0, n and n + 1 of its polygon. Column by column, to save memory
    faces = np.empty((total, 3), np.int64)
    place = np.repeat(starts, triangles)
    faces[:, 0] = corners[place]
    place += np.arange(1, total + 1)
    place -= np.repeat(firsts, triangles)
    faces[:, 1] = corners[place]
    place += 1
    faces[:, 2] = corners[place]
    larger = np.flatnonzero(counts > 3)
    for group in _of_equal_size(counts[larger]):
        polygons = larger[group]
        size = int(counts[polygons[0]])
        some, cut = cutter.cut(corners[starts[polygons, None] + np.arange(size)])
        faces[(firsts[polygons[some], None] + np.arange(size - 2)).reshape(-1)] = cut.reshape(-1, 3)
    cutter.tell(len(kept))
    return faces, np.repeat(kept, triangles)


def _fan(size: int) -> np.ndarray:
    """Return the corners (size - 2, 3) of triangles that all have the first corner of a polygon."""
    return np.stack([np.zeros(size - 2, np.int64), np.arange(1, size - 1), np.arange(2, size)], axis=1)


def _of_equal_size(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the polygons of each number of corners."""
    if not len(counts):
        return
    # Numbers of few bits are sorted in one pass.
    order = np.argsort(counts.astype(np.min_scalar_type(counts.max())), kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(counts[order])) + 1)


class _Cutter:
    """Cuts polygons, and counts those whose outline encloses nothing, or not once."""

    def __init__(self, points: Sequence[np.ndarray], source: Source):
        self.points = points
        self.source = source
        self.work = self.doubtful = 0
        self._columns: list[np.ndarray] | None = None

    def tell(self, polygons: int) -> None:
        """Warn of polygons that no triangles fit exactly."""
        if self.doubtful:
            self.source.warn(
                f"{self.doubtful:,} of {polygons:,} polygons cross themselves, repeat a corner or have no area; their "
                "triangles may cover more than their outline"
            )

    def cut(self, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of polygons with as many corners each, (polygons, size), may be no fans, and their triangles.

        Returns:
            Polygons (some,), and the corners of their triangles (some, 3 * (size - 2)).
        """
        size = corners.shape[1]
        some = np.zeros(0, np.int64)
        if size > 3:
            check_corners(corners, len(self.points[0]))
            some = self._not_clearly_convex(corners)
        if not len(some):
            return some, np.zeros((0, 3 * (size - 2)), np.int64)
        return some, self._cut_carefully(corners[some], _fan(size))

    def _not_clearly_convex(self, corners: np.ndarray) -> np.ndarray:
        """Return which polygons (some,) have neighbors in their fan that do not face the same way."""
        if self._columns is None:
            # As precise as they are, side by side in memory
            types = [np.float32 if column.dtype in (np.float32, np.float16) else np.float64 for column in self.points]
            columns = zip(self.points, types, strict=True)
            self._columns = [np.ascontiguousarray(column, dtype) for column, dtype in columns]
        found = []
        rows = max(1, _CORNERS_AT_ONCE // corners.shape[1])
        for start in range(0, len(corners), rows):
            block = np.ascontiguousarray(corners[start : start + rows].T)  # (size, polygons)
            doubled = _doubled_areas([column.take(block) for column in self._columns])
            same = doubled[0][:-1] * doubled[0][1:]  # (size - 3, polygons)
            for axis in (1, 2):
                same += doubled[axis][:-1] * doubled[axis][1:]
            # NaN is not above 0.
            if not same.min() > 0:
                found.append(start + np.flatnonzero(~(same > 0).all(axis=0)))
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def _cut_carefully(self, corners: np.ndarray, fan: np.ndarray) -> np.ndarray:
        """Return the triangles (polygons, 3 * (size - 2)) of polygons that may be concave."""
        size = corners.shape[1]
        places = np.stack([np.asarray(column)[corners] for column in self.points]).astype(np.float64)
        places -= places[:, :, :1]  # (3, polygons, size)
        own = np.stack(_doubled_areas(list(places.transpose(0, 2, 1)))).sum(axis=1)  # (3, polygons)
        lengths = np.linalg.norm(own, axis=0)
        has_area = lengths > _NO_AREA * np.square(places).sum(axis=0).max(axis=1)
        repeats = (places == np.roll(places, 1, axis=2)).all(axis=0).any(axis=1)
        order = np.tile(fan.reshape(-1), (len(corners), 1))
        # What is NaN is left out or refused later.
        is_known = np.isfinite(lengths)
        left = np.flatnonzero(has_area & is_known)
        least = np.full(len(corners), np.inf)  # twice the area beyond the outline so far
        for first in range(min(size, _FANS)):
            turned = np.roll(places[:, left], -first, axis=2)
            doubled = np.stack(_doubled_areas(list(turned.transpose(0, 2, 1))))  # (3, size - 2, polygons)
            along = np.einsum("atp,ap->tp", doubled, own[:, left])
            beyond = -np.minimum(along, 0).sum(axis=0) / lengths[left]
            is_better = left[beyond < least[left]]
            order[is_better] = (fan.reshape(-1) + first) % size
            least[left] = np.minimum(beyond, least[left])
            left = left[least[left] > _ROUNDING * lengths[left]]
        across = _axes_across(own[:, left])  # (2, 3, polygons)
        flat = np.einsum("bap,apc->bpc", across, places[:, left])  # (2, polygons, size)
        for polygon, x, y in zip(left.tolist(), *flat.tolist(), strict=True):
            triangles, beyond = self._ears(x, y)
            if beyond < least[polygon]:
                order[polygon] = triangles
                least[polygon] = beyond
        crosses = has_area & (least > _ROUNDING * lengths)
        self.doubtful += int(((~has_area | repeats | crosses) & is_known).sum())
        return np.take_along_axis(corners, order, axis=1)

    def _ears(self, x: list[float], y: list[float]) -> tuple[list[int], float]:
        """Cut off one corner after the other whose triangle has no part of the outline inside.

        Args:
            x: Of each corner, counterclockwise.
            y: Likewise.

        Returns:
            The corners of all triangles, three of each, and twice the area of those that turn the other way. Without a
            corner to cut off, as in an outline that crosses itself, any is: with their signs, areas add up to that of
            the outline whatever is cut.

        Source: Meisters, "Polygons have ears", 1975.
        """
        size = len(x)
        before = [size - 1, *range(size - 1)]
        after = [*range(1, size), 0]
        no_area = _NO_AREA * (max(map(abs, x)) + max(map(abs, y))) ** 2

        def turn_at(b: int) -> float:
            a = before[b]
            return (x[b] - x[a]) * (y[after[b]] - y[b]) - (y[b] - y[a]) * (x[after[b]] - x[b])

        # The deepest corner of what reaches into a triangle is one of these, from left to right. They become fewer.
        hollow = sorted((x[b], b) for b in range(size) if turn_at(b) <= no_area)
        rank = {b: place for place, (_, b) in enumerate(hollow)}
        from_left = [place for place, _ in hollow]
        ups = [y[b] for _, b in hollow]
        counts = bytearray(b"\1" * len(hollow))
        # The same as arrays, for triangles that many corners may be in.
        columns = np.array(from_left), np.array(ups), np.frombuffer(counts, np.bool_)

        def is_ear(a: int, b: int, c: int) -> bool:
            ax, bx, cx = x[a], x[b], x[c]
            ay, by, cy = y[a], y[b], y[c]
            first = bisect_left(from_left, min(ax, bx, cx))
            stop = bisect_right(from_left, max(ax, bx, cx))
            some = range(first, stop)
            self.work += 1 + len(some) // (_FASTER if len(some) > _FEW else 1)
            if len(some) > _FEW:
                px, py, inside = (column[first:stop] for column in columns)
                for sx, sy, tx, ty in ((ax, ay, bx, by), (bx, by, cx, cy), (cx, cy, ax, ay)):
                    inside = inside & ((tx - sx) * (py - sy) >= (ty - sy) * (px - sx))
                some = (first + np.flatnonzero(inside)).tolist()
            for place in some:
                px = from_left[place]
                py = ups[place]
                if (
                    counts[place]
                    and (bx - ax) * (py - ay) >= (by - ay) * (px - ax)
                    and (cx - bx) * (py - by) >= (cy - by) * (px - bx)
                    and (ax - cx) * (py - cy) >= (ay - cy) * (px - cx)
                    # A corner at the same place as one of the neighbors reaches no farther into the triangle.
                    and not (px == ax and py == ay)
                    and not (px == cx and py == cy)
                ):
                    return False
            return True

        triangles: list[int] = []
        beyond = 0.0
        b = 0
        failures = 0
        for left in range(size, 2, -1):
            while True:
                if self.work > _MOST_WORK:
                    raise PointCloudError(
                        f"a polygon of {size:,} corners is too intricate to be cut; export the mesh as triangles"
                    )
                a = before[b]
                c = after[b]
                turn = turn_at(b)
                # After a round in vain, any corner that turns the right way, and after another one any.
                if abs(turn) <= no_area or failures > 2 * left or (turn > 0 and (failures > left or is_ear(a, b, c))):
                    break
                failures += 1
                b = c
            triangles += (a, b, c)
            beyond -= min(turn, 0)
            after[a] = c
            before[c] = a
            # A corner that is cut off, or is hollow no more, reaches into no triangle.
            for corner in (a, b, c):
                if corner in rank and (corner == b or turn_at(corner) > no_area):
                    counts[rank[corner]] = 0
            failures = 0
            # The neighbors of an ear are the likeliest ones.
            b = a
        return triangles, beyond


def _doubled_areas(places: list[np.ndarray]) -> list[np.ndarray]:
    """Return x, y and z of twice the area vectors (size - 2, polygons) of fans by those of their corners."""
    sides = [axis[1:] - axis[0] for axis in places]
    doubled = []
    for one, other in ((1, 2), (2, 0), (0, 1)):
        product = sides[one][:-1] * sides[other][1:]
        product -= sides[other][:-1] * sides[one][1:]
        doubled.append(product)
    return doubled


def _axes_across(vectors: np.ndarray) -> np.ndarray:
    """Return two unit vectors (2, 3, vectors) across each one (3, vectors), which turn around it counterclockwise."""
    units = vectors / np.linalg.norm(vectors, axis=0)
    least = np.eye(3)[np.abs(units).argmin(axis=0)].T
    right = np.cross(units, least, axis=0)
    right /= np.linalg.norm(right, axis=0)
    return np.stack([right, np.cross(units, right, axis=0)])
