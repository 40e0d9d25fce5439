"""Orders of voxels along space-filling curves, and the patches into which a sequence of them is cut.

Point Transformer V3 attends within patches of consecutive voxels along a curve; `serialize` computes the curves'
orders, `PatchGroups` the patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_any3d.modeling.config_checks import check_numbers

CURVES = ("z", "z-trans", "hilbert", "hilbert-trans")
"""Z-order and Hilbert curve; "-trans" exchanges x and y."""
LARGEST_DEPTH = 16
"""Bits of a grid coordinate, so that codes of three coordinates and a cloud fit into 64 bits."""


def curve_depths(
    grid_coord: Tensor, cloud: Tensor, num_clouds: int, of_batch: bool = False, plus_one: bool = True
) -> Tensor:
    """Return the bits `(clouds,)` of each cloud's curves: those of its largest coordinate, with `plus_one` plus one.

    With `of_batch`, all clouds get the largest depth, as in the released programs. Then the Hilbert order inside a
    cloud depends on the others: each bit more rotates the curve's axes.
    """
    largest = grid_coord.amax(dim=1)  # (voxels,)
    per_cloud = largest.new_zeros(num_clouds).scatter_reduce(0, cloud, largest, "amax")
    # frexp's exponent is an integer's exact bit length; a rounded logarithm may be off by one at powers of two.
    depths = torch.frexp((per_cloud + int(plus_one)).double()).exponent.long()
    low, high = (int(grid_coord.amin()), int(largest.max())) if len(grid_coord) else (0, 0)
    deepest = int(depths.max())
    if low < 0 or deepest > LARGEST_DEPTH:
        raise ValueError(
            f"grid_coord: found {low if low < 0 else high}; expected 0 to {2**LARGEST_DEPTH - 2} along each axis; "
            "scale the cloud down, use a larger grid_size, or cut the scene"
        )
    return torch.full_like(depths, deepest) if of_batch else depths


def curve_codes(grid_coord: Tensor, curve: str, depth: int | Tensor) -> Tensor:
    """Return the position `(voxels,)` of each grid cell `(voxels, 3)`, int64 from 0, along one of `CURVES`.

    Hilbert curves depend on the `depth`, bits per coordinate: one number, or one for each voxel.

    Source: Skilling, Programming the Hilbert curve (2004).
    """
    if curve not in CURVES:
        raise ValueError(f"curve={curve!r}; expected one of {', '.join(map(repr, CURVES))}")
    x, y, z = grid_coord.unbind(dim=1)
    axes = (y, x, z) if curve.endswith("-trans") else (x, y, z)
    if curve.startswith("z"):
        return _interleave(*axes)
    code = _interleave(*_transpose_hilbert(axes, depth))
    for shift in (1, 2, 4, 8, 16, 32):  # from Gray code: each bit becomes the parity of the bits above it
        code = code ^ (code >> shift)
    return code


def _interleave(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (_spread(x) << 2) | (_spread(y) << 1) | _spread(z)


def _spread(value: Tensor) -> Tensor:
    """Put two zeros between the bits of numbers of up to 21 bits."""
    # From coarse to fine: each step moves the upper half of every group of bits up, and the mask drops the copies.
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        value = (value | (value << shift)) & mask
    return value


def _transpose_hilbert(axes: Sequence[Tensor], depth: int | Tensor) -> list[Tensor]:
    # Skilling's loop from coordinates to the transposed index, with masks in place of branches: where an axis has the
    # bit, the lower bits of the first axis are inverted; where it has not, they are exchanged with the first axis.
    first, *others = (axis.clone() for axis in axes)
    if isinstance(depth, int):
        deepest = depth
    else:
        deepest = int(depth.max()) if len(depth) else 0
    for bit in range(deepest - 1, 0, -1):  # bit 0 would change nothing: its mask of lower bits is empty
        below: int | Tensor = (1 << bit) - 1
        if not isinstance(depth, int):
            # A cloud with fewer bits starts later: until then, nothing of it is inverted or exchanged.
            below = torch.where(depth > bit, below, 0)
        first = first ^ (-((first >> bit) & 1) & below)
        for number, other in enumerate(others):
            has_bit = -((other >> bit) & 1)  # all ones or zero
            exchanged = (first ^ other) & below & ~has_bit
            first = first ^ (has_bit & below) ^ exchanged
            others[number] = other ^ exchanged
    return [first, *others]


@dataclass
class Serialization:
    """Voxels of a batch in the order of curves, `(curves, voxels)` each; the clouds stay in their order.

    `code` are positions along each curve, with the cloud in the highest bits; `order` are the voxels sorted by it, and
    `inverse` the place of each voxel in that order.
    """

    code: Tensor
    order: Tensor
    inverse: Tensor


def serialize(
    grid_coord: Tensor,
    cloud: Tensor,
    num_clouds: int,
    curves: Sequence[str],
    depth_of_batch: bool = False,
    depths: Tensor | None = None,
) -> Serialization:
    """Sort voxels `(voxels, 3)`, int64 from 0, no cell twice in a cloud, along curves, cloud by cloud.

    `cloud (voxels,)` numbers the cloud of each; `depths (clouds,)` are bits of each cloud's curves, by default those
    of `curve_depths`, with `depth_of_batch` of the whole batch.

    Source: Point Transformer V3, Sec. 4.2.

    Example:
        >>> cells = torch.tensor([[1, 1, 1], [0, 0, 0], [0, 0, 1]])
        >>> serialize(cells, torch.zeros(3, dtype=torch.long), num_clouds=1, curves=["z"]).order
        tensor([[1, 2, 0]])
    """
    depths = curve_depths(grid_coord, cloud, num_clouds, depth_of_batch) if depths is None else depths
    deepest = int(depths.max())
    equal = bool((depths == deepest).all())
    # One number is faster than a tensor. The cloud goes above the bits of the deepest curve, so clouds stay apart.
    depth = deepest if equal else depths[cloud]
    code = torch.stack([curve_codes(grid_coord, curve, depth) for curve in curves]) | (cloud << 3 * deepest)
    order = code.argsort(dim=1)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return Serialization(code, order, torch.empty_like(order).scatter_(1, order, places))


def patch_table(counts: Sequence[int], patch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the serialized voxels of clouds into patches; the last patch of a cloud borrows from the one before.

    A cloud of at most `patch_size` voxels is one patch. Of a larger one, the last patch holds the remaining voxels and
    then the last ones of the previous patch, up to `patch_size`.

    Returns:
        The voxel at each place of the concatenated patches `(places,)`; the own place of each voxel `(voxels,)`, not
        that of a borrowed copy; and where patches start, with the total, `(patches + 1,)` int32.

    Example:
        >>> places, own, starts = patch_table([5], patch_size=3)
        >>> places  # the last patch borrows voxel 2
        tensor([0, 1, 2, 3, 4, 2])
    """
    check_numbers(1, patch_size=patch_size)
    pad = []
    unpad = []
    starts = [0]
    first = places = 0
    for count in counts:
        own = torch.arange(count)
        remainder = count % patch_size if count > patch_size else 0
        borrowed = own.new_empty(0)
        if remainder:
            borrowed = torch.arange(count - patch_size, count - remainder)
        pad.append(first + torch.cat([own, borrowed]))
        unpad.append(places + own)
        total = count + len(borrowed)
        size = min(patch_size, total)
        # All patches of a cloud are equally long, thanks to the borrowed voxels.
        starts += range(places + size, places + total + 1, size) if total else []
        first = first + count
        places = places + total
    return torch.cat(pad), torch.cat(unpad), torch.tensor(starts, dtype=torch.int32)


@dataclass
class PatchGroup:
    """Patches of equal shape.

    `queries` are `(patches, queries)` arranged voxels, or a slice of them that is cut into patches of `size`; `keys`
    are `(patches, keys)`, or None for the queries. The `mask (patches, keys)` is False where a key is filled in, and
    `own (voxels,)` are the places of voxels among the flattened queries; None if nothing is filled in.
    """

    queries: Tensor | slice
    keys: Tensor | None
    size: int
    mask: Tensor | None = None
    own: Tensor | None = None

    def gather(self, values: Tensor, of_keys: bool = False) -> Tensor:
        """Return `(patches, queries or keys, …)` of arranged values `(voxels, …)`."""
        if isinstance(self.queries, slice):
            return values[self.queries].unflatten(0, (-1, self.size))
        return values[self.keys if of_keys and self.keys is not None else self.queries]


class PatchGroups:
    """Patches of all clouds of a batch for attention of blocks of equal shape, without copies of voxels.

    A voxel that the last patch of a cloud borrows is only a key there, not a query, and that patch's keys are the last
    `patch_size` voxels of the cloud. Voxels are arranged so that full patches come first and need no gathering.
    `as_one` puts all patches into one group, as is needed to return attention weights.
    """

    def __init__(self, counts: Sequence[int], patch_size: int, device: torch.device, as_one: bool = False):
        check_numbers(1, patch_size=patch_size)
        self.counts = tuple(counts)
        self.patch_size = patch_size
        full, tails, small = _cut(counts, patch_size)
        # Recorded attention weights are a single tensor, so all patches get the shape of the largest.
        if as_one:
            pieces = [patch for places in full for patch in places.split(patch_size)]
            small = [*((patch, patch) for patch in pieces), *tails, *small]
            full = []
            tails = []
        rest = [queries for queries, _ in (*tails, *small)]
        # torch.cat refuses an empty list; a batch may be without voxels.
        arranged = torch.cat([*full, *rest, torch.empty(0, dtype=torch.long)])
        # The inverse of a permutation, without sorting.
        place_of = torch.empty_like(arranged).scatter_(0, arranged, torch.arange(len(arranged)))
        self.groups: list[PatchGroup] = []
        if full:
            self.groups.append(PatchGroup(slice(0, sum(map(len, full))), None, patch_size))
        # Tails have keys of one length, small clouds of many: apart, less is filled in.
        for patches in (tails, small):
            if patches:
                queries, is_query = _fill([place_of[own] for own, _ in patches])
                keys, is_key = _fill([place_of[read] for _, read in patches])
                # Without a mask, attention can take kernels that support none.
                mask = None if is_key.all() else is_key.to(device)
                own = None if is_query.all() else is_query.flatten().nonzero()[:, 0].to(device)
                group = PatchGroup(queries.to(device), keys.to(device), keys.shape[1], mask, own)
                self.groups.append(group)
        self.arranged = arranged.to(device)
        """`(voxels,)`, the serialized place of each arranged voxel."""


_Patch = tuple[Tensor, Tensor]
"""Serialized places of a patch's queries and of its keys."""


def _cut(counts: Sequence[int], patch_size: int) -> tuple[list[Tensor], list[_Patch], list[_Patch]]:
    """Return the serialized places in full patches, and the patches that are left: ends of clouds, small clouds."""
    full = []
    tails = []
    small = []
    first = 0
    for count in counts:
        places = torch.arange(first, first + count)
        if count >= patch_size:
            split = count - count % patch_size
            full.append(places[:split])
            if split < count:
                # Queries and keys: the remaining voxels attend within the last full patch length.
                tails.append((places[split:], places[-patch_size:]))
        elif count:
            small.append((places, places))
        first += count
    return full, tails, small


def _fill(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack rows of different lengths, filled up with their first entry, and a mask that is False there."""
    sizes = torch.tensor([len(row) for row in rows])
    # Any valid index would do: the mask hides keys that are filled in, and `own` leaves out such queries.
    filled = torch.stack([torch.cat([row, row[:1].expand(int(sizes.max()) - len(row))]) for row in rows])
    return filled, torch.arange(filled.shape[1]) < sizes[:, None]
