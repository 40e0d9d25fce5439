"""Checks of the coordinates that point operations work on."""

from torch import Tensor

from hf_any3d.modeling.deferred_errors import refuse_later

LARGEST_COORDINATE = 1e12
"""Far beyond any scan in any unit; squares and their sums over a batch stay far inside the range of float32."""


def coordinates(name: str, value: Tensor) -> Tensor:
    """Return the coordinates `(batch, points, 3)` of points `(batch, points, channels)`.

    Raises:
        ValueError: If the shape is another or the dtype is not a float.
    """
    if value.dim() != 3 or value.shape[2] < 3:
        raise ValueError(f"{name}: shape {tuple(value.shape)}; expected (batch, points, channels) with channels >= 3")
    if not value.is_floating_point():
        raise ValueError(f"{name}: dtype {value.dtype}; expected a floating point dtype")
    return value[..., :3]


def refuse_out_of_range(name: str, values: Tensor, largest: float = LARGEST_COORDINATE) -> None:
    """Reject clouds with numbers that would make all results NaN, running statistics of norms included.

    Costs one pass over the numbers. An accelerator would have to finish all its work before its result could be read:
    there a later check raises the error, see `refuse_later`. Not for compiled code.

    Args:
        name: Name of the clouds in the message.
        values: `(batch, points, channels)` floats of any kind.
        largest: Largest absolute value allowed.

    Raises:
        ValueError: If a number is NaN, infinite or larger; names the first such cloud, or on an accelerator that an
            earlier batch had one.
    """
    if not values.numel():
        return
    # NaN makes both bounds NaN, and a comparison with NaN is False.
    low, high = values.detach().aminmax()
    in_range = (low >= -largest) & (high <= largest)
    if values.device.type != "cpu":
        refuse_later(
            ~in_range, f"{name}: found NaN, infinite numbers or numbers above {largest:.3g} in an earlier batch"
        )
        return
    if in_range:
        return
    # Only now, for the message: which cloud, and how far off.
    sizes = values.detach().abs().flatten(1).amax(dim=1)  # (batch,); NaN where a number is
    cloud = int((sizes <= largest).logical_not().nonzero()[0])
    if not sizes[cloud].isfinite():
        raise ValueError(f"{name}: found NaN or infinite coordinates in cloud {cloud}; expected finite numbers")
    raise ValueError(
        f"{name}: found {sizes[cloud]:.3g} in cloud {cloud}; expected numbers of at most {largest:.3g} in size"
    )
