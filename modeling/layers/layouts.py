"""The language that SpatialLM writes: walls, doors, windows and labeled boxes of a room, one line each.

wall_0=Wall(ax,ay,az,bx,by,bz,height,thickness)    door_0=Door(wall_0,x,y,z,width,height)
bbox_0=Bbox(label,x,y,z,angle,sx,sy,sz)            window_0=Window(wall_0,x,y,z,width,height)
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hf_any3d.modeling.layers.boxes import box_corners, upright_rotation

EXTENT = 32.0
"""Meters along each axis that positions in a layout, and the cells of a scan, cover."""
# Positions cover 32 m, lengths of walls and openings 25.6 m, sizes of boxes 20 m, angles a full turn either way.
_POSITION, _LENGTH, _SIZE, _ANGLE = (0.0, EXTENT), (0.0, 25.6), (0.0, 20.0), (-6.2832, 6.2832)


def _ranged(limits: tuple[float, float], **options: Any) -> Any:
    """Field for a number, with the range that bins divide."""
    return field(metadata={"limits": limits}, **options)


class _Sized:
    """Refuses lengths below 0, which would turn a wall or a box inside out."""

    def __post_init__(self):
        # Positions and angles may be below 0.
        for own in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, own.name)
            if own.metadata.get("limits") in (_LENGTH, _SIZE) and value < 0:
                raise ValueError(f"{own.name} is {value:g}; expected at least 0")


@dataclass(frozen=True)
class Wall(_Sized):
    """A wall: the two lower ends of its center line, height and thickness, in meters."""

    id: int
    ax: float = _ranged(_POSITION)
    ay: float = _ranged(_POSITION)
    az: float = _ranged(_POSITION)
    bx: float = _ranged(_POSITION)
    by: float = _ranged(_POSITION)
    bz: float = _ranged(_POSITION)
    height: float = _ranged(_LENGTH)
    thickness: float = _ranged(_LENGTH, default=0.0)


@dataclass(frozen=True)
class Opening(_Sized):
    """A door or window in a wall: center, width along the wall and height, in meters."""

    id: int
    wall_id: int
    x: float = _ranged(_POSITION)
    y: float = _ranged(_POSITION)
    z: float = _ranged(_POSITION)
    width: float = _ranged(_LENGTH)
    height: float = _ranged(_LENGTH)


class Door(Opening):
    """A door; see `Opening`."""


class Window(Opening):
    """A window; see `Opening`."""


@dataclass(frozen=True)
class Box(_Sized):
    """A box around an object: center and full sizes along its own axes in meters, turn about z in radians."""

    id: int
    label: str
    x: float = _ranged(_POSITION)
    y: float = _ranged(_POSITION)
    z: float = _ranged(_POSITION)
    angle: float = _ranged(_ANGLE)
    sx: float = _ranged(_SIZE)
    sy: float = _ranged(_SIZE)
    sz: float = _ranged(_SIZE)


Entity = Wall | Door | Window | Box
KINDS: Mapping[str, type] = {"wall": Wall, "door": Door, "window": Window, "bbox": Box}
"""Word before the number of a line -> its class, in the order of a text."""


def number_names(kind: type) -> tuple[str, ...]:
    """Return the names of an entity's numbers, in the order of a line."""
    # Only numbers have limits: identifiers and labels have no metadata.
    return tuple(own.name for own in dataclasses.fields(kind) if own.metadata)


_SMALLEST_BOX = 0.15


_NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
# What stands before the numbers of a line: nothing, a label, or the wall that an opening is in.
_FIRST = {Wall: "", Box: r"[^,()\n]+,", Door: r"wall_\d+,", Window: r"wall_\d+,"}
_LINE = re.compile(
    "|".join(
        rf"{word}_\d+={word.capitalize()}\({_FIRST[kind]}{','.join([_NUMBER] * len(number_names(kind)))}\)"
        for word, kind in KINDS.items()
    )
)
"""A line of the language."""


@dataclass(frozen=True)
class DroppedLine:
    """A line of a text, by its number from 1, that is no entity, and the reason."""

    number: int
    text: str
    reason: str


@dataclass(frozen=True)
class Layout:
    """Walls, doors, windows and boxes of a room.

    Numbers are in meters and radians, or those of bins in what a model writes; see `quantized`.

    Attributes:
        dropped: Lines of the text that it was read from that are no entities.
        up_axis: The axis along which heights and the third sizes of boxes are, and about which boxes are turned, one
            of `UP_AXES` of `hf_any3d.modeling.layers.boxes`. What models write is about z.
        up: Unit vector near that axis that they are along in fact, for a scan that is tilted; None for the axis.

    Example:
        ```python
        layout = Layout.parse(answer).unquantized(1280).translated(corner)
        ```
    """

    walls: tuple[Wall, ...] = ()
    doors: tuple[Door, ...] = ()
    windows: tuple[Window, ...] = ()
    boxes: tuple[Box, ...] = ()
    dropped: tuple[DroppedLine, ...] = field(default=(), compare=False)
    up_axis: str = "z"
    up: tuple[float, float, float] | None = None

    def __post_init__(self):
        _ = self.upright_rotation  # an error for an unknown axis, or a direction far from it

    @classmethod
    def of(cls, entities: Iterable[Entity], dropped: Iterable[DroppedLine] = ()) -> Layout:
        """Build a layout of entities of any kinds; each kind keeps its order."""
        of_kind: dict[type, list[Any]] = {kind: [] for kind in KINDS.values()}
        for entity in entities:
            of_kind[type(entity)].append(entity)
        # `KINDS` is in the order of the fields.
        walls, doors, windows, boxes = map(tuple, of_kind.values())
        return cls(walls, doors, windows, boxes, tuple(dropped))

    @property
    def entities(self) -> tuple[Entity, ...]:
        """All entities, in the order of a text."""
        return (*self.walls, *self.doors, *self.windows, *self.boxes)

    @classmethod
    def parse(cls, text: str, *, strict: bool = False, keep_unclosed: bool = False) -> Layout:
        """Read a text line by line.

        As in the released program, blanks around numbers, further arguments and text after the parenthesis are passed
        over, and a door or window needs a wall in an earlier line.

        Args:
            text: One line for each entity.
            strict: Whether to refuse a text with a line that is not exactly of the language, instead of dropping it;
                also a size below 0, whose sign is dropped otherwise, a wall without length, and two of one name.
            keep_unclosed: Whether to keep a line without closing parenthesis, as an answer that was cut off ends with,
                less its last character, as the released program does; its last number is then wrong.

        Raises:
            ValueError: With `strict`, a line is not of the layout language; names the line.
        """
        lines = list(read_lines(text.split("\n"), strict=strict, keep_unclosed=keep_unclosed))
        dropped = [line for line in lines if isinstance(line, DroppedLine)]
        return cls.of([line for line in lines if not isinstance(line, DroppedLine)], dropped)

    def write(self) -> str:
        """Return the text; as in the released program, only walls have numbers above 999."""
        # In the order in which models are trained to write: walls first, which doors and windows name.
        words = {kind: word for word, kind in KINDS.items()}
        lines = []
        for entity in self.entities:
            word = words[type(entity)]
            number = entity.id
            values = [str(getattr(entity, name)) for name in number_names(type(entity))]
            if not isinstance(entity, Wall):
                # As the released program writes them: its models have seen no larger ones.
                number %= 1000
                values.insert(0, entity.label if isinstance(entity, Box) else f"wall_{entity.wall_id}")
            lines.append(f"{word}_{number}={word.capitalize()}({','.join(values)})")
        return "\n".join(lines)

    def quantized(self, num_bins: int) -> Layout:
        """Return the layout with the numbers of bins in place of meters and radians; the inverse is `unquantized`.

        What is beyond a range falls into its last bin.
        """
        return self._mapped(
            lambda value, low, high: min(max(int((value - low) / (high - low) * num_bins), 0), num_bins - 1)
        )

    def unquantized(self, num_bins: int, *, lower_edge: bool = False) -> Layout:
        """Return the layout in meters and radians.

        A bin means its center, or with `lower_edge` its lower edge, as in the released program, whose values are
        therefore half a bin too small on average.
        """
        # The lower edge is not even stable: writing and reading it again loses a bin for some numbers.
        shift = 0.0 if lower_edge else 0.5
        return self._mapped(lambda value, low, high: (value + shift) / num_bins * (high - low) + low)

    def _mapped(self, change: Callable[[float, float, float], float]) -> Layout:
        def mapped(entity: Entity) -> Entity:
            # Identifiers and labels have no range, and stay as they are.
            numbers = [number for number in dataclasses.fields(entity) if number.metadata]
            values = {
                number.name: change(getattr(entity, number.name), *number.metadata["limits"]) for number in numbers
            }
            return dataclasses.replace(entity, **values)

        self._check_upright()
        return self._each(mapped)

    def _each(self, change: Callable[[Entity], Entity]) -> Layout:
        changed = Layout.of(map(change, self.entities), self.dropped)
        return dataclasses.replace(changed, up_axis=self.up_axis, up=self.up)

    @property
    def upright_rotation(self) -> np.ndarray:
        """Rotation `(3, 3)` after which z points up."""
        return upright_rotation(self.up_axis, self.up)

    def _check_upright(self) -> None:
        if self.up_axis != "z" or self.up is not None:
            told = f"up_axis={self.up_axis!r}" + ("" if self.up is None else f" and up={self.up}")
            raise ValueError(f"the layout has {told}; expected 'z': call with_up_axis('z') first")

    def with_up_axis(self, up_axis: str, up: tuple[float, float, float] | None = None) -> Layout:
        """Return the layout turned so that another axis points up; quarter turns about z stay as they are.

        `up` is the direction near that axis that points up in fact; None for the axis, so that a tilted layout is
        leveled.
        """
        # Built first, as it checks the new axis and direction.
        turned = dataclasses.replace(self, up_axis=up_axis, up=up)
        # From the old axis to z, and from z to the new one.
        turn = turned.upright_rotation.T @ self.upright_rotation
        return turned._moved(lambda place: turn @ place)

    def _moved(self, move: Callable[[np.ndarray], np.ndarray]) -> Layout:
        """Apply a function to all positions `(3,)`."""

        def moved(entity: Entity) -> Entity:
            changed: dict[str, float] = {}
            # Both ends of a wall are positions; sizes and angles do not move.
            for names in (("ax", "ay", "az"), ("bx", "by", "bz")) if isinstance(entity, Wall) else (("x", "y", "z"),):
                place = move(np.array([getattr(entity, name) for name in names], dtype=np.float64))
                changed |= dict(zip(names, place.tolist(), strict=True))
            return dataclasses.replace(entity, **changed)

        return self._each(moved)

    def translated(self, shift: Iterable[float]) -> Layout:
        """Return the layout moved by `(3,)`: with the corner of a scan's box, back in the scan's frame."""
        by = np.array([*shift], dtype=np.float64)
        return self._moved(lambda place: place + by)

    def scaled(self, factor: float) -> Layout:
        """Return the layout with all positions and lengths multiplied by a positive number."""

        def scaled(entity: Entity) -> Entity:
            # An angle is no length.
            lengths = [name for name in number_names(type(entity)) if name != "angle"]
            return dataclasses.replace(entity, **{name: getattr(entity, name) * factor for name in lengths})

        return self._each(scaled)

    def rotated(self, angle: float) -> Layout:
        """Return the layout turned about the z axis, in radians.

        Angles of boxes end up between -pi and 0, and between -pi and -pi / 2 where the two horizontal sizes are equal,
        since boxes look the same after half a turn, or a quarter.
        """
        self._check_upright()
        cosine = math.cos(angle)
        sine = math.sin(angle)
        # Counterclockwise, seen from above
        matrix = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        moved = self._moved(lambda place: matrix @ place)

        def turned(box: Box) -> Box:
            wrapped = (box.angle + angle + math.pi) % (2 * math.pi) - math.pi
            # A box that is as long as wide looks the same after each quarter turn.
            period = math.pi / 2 if np.isclose(box.sx, box.sy, atol=1e-3) else math.pi
            return dataclasses.replace(box, angle=(wrapped + math.pi) % period - math.pi)

        return dataclasses.replace(moved, boxes=tuple(map(turned, moved.boxes)))

    def with_folded_turns(self) -> Layout:
        """Return the layout with boxes that are turned by quarter turns along the axes, so that each has one text.

        Their horizontal sizes are swapped if need be; the space that they fill is the same.
        """

        def folded(box: Box) -> Box:
            quarters = round(box.angle / (math.pi / 2))
            if not math.isclose(box.angle, quarters * math.pi / 2, abs_tol=1e-3):
                return box
            # After an odd number of them, length and width lie along each other's axis.
            sizes = {"sx": box.sy, "sy": box.sx} if quarters % 2 else {}
            return dataclasses.replace(box, angle=0.0, **sizes)

        self._check_upright()
        return dataclasses.replace(self, boxes=tuple(map(folded, self.boxes)))

    def ordered(self, resolution: float | None = None) -> Layout:
        """Return the layout in the order that a model is trained with, numbered anew from 0.

        Tiny boxes and those without a class are left out. The ends of a wall are swapped if the second is first by
        z, y, x; walls are sorted by their ends, all else by y and x.

        Args:
            resolution: Positions are compared in multiples of this length, such as a bin; None compares them exactly,
                as in the released program, where walls along the axes are sorted by rounding errors.
        """
        self._check_upright()

        def key(*values: float) -> tuple[float, ...]:
            return values if resolution is None else tuple(round(value / resolution) for value in values)

        # So that a wall has one text, whichever end it was drawn from.
        walls = []
        for wall in self.walls:
            if key(wall.az, wall.ay, wall.ax) > key(wall.bz, wall.by, wall.bx):
                ends = {"ax": wall.bx, "ay": wall.by, "az": wall.bz, "bx": wall.ax, "by": wall.ay, "bz": wall.az}
                wall = dataclasses.replace(wall, **ends)
            walls.append(wall)
        walls.sort(key=lambda wall: key(wall.az, wall.ay, wall.ax, wall.bz, wall.by, wall.bx))
        # Doors and windows name their walls, which have got new numbers.
        numbers = {wall.id: number for number, wall in enumerate(walls)}

        def renumbered(entities: Iterable[Any]) -> tuple[Any, ...]:
            return tuple(
                dataclasses.replace(
                    entity, id=number, **{"wall_id": numbers[entity.wall_id]} if isinstance(entity, Opening) else {}
                )
                for number, entity in enumerate(sorted(entities, key=lambda entity: key(entity.y, entity.x)))
            )

        # As in the released program: without boxes of no class, and those below 15 cm along every axis.
        boxes = (
            box
            for box in self.boxes
            if box.label not in ("", "unknown") and max(box.sx, box.sy, box.sz) >= _SMALLEST_BOX
        )
        return dataclasses.replace(
            self,
            walls=tuple(dataclasses.replace(wall, id=number) for number, wall in enumerate(walls)),
            doors=renumbered(self.doors),
            windows=renumbered(self.windows),
            boxes=renumbered(boxes),
        )

    def as_boxes(self) -> tuple[np.ndarray, list[str]]:
        """Return all entities as boxes turned about what points up: walls, doors and windows are flat ones.

        Boxes are `(boxes, 7)` float64: center, full sizes, the third upward, and angle; each has a label.
        """
        if self.up_axis != "z" or self.up is not None:
            # Boxes turn about z only: leveled, made, and their centers turned back.
            boxes, names = self.with_up_axis("z").as_boxes()
            boxes[:, :3] = boxes[:, :3] @ self.upright_rotation
            return boxes, names
        rows = []
        labels = []
        walls: dict[int, tuple[Wall, float]] = {}
        for wall in self.walls:
            along = np.array([wall.bx - wall.ax, wall.by - wall.ay, wall.bz - wall.az])
            angle = math.atan2(along[1], along[0])
            # If a number occurs twice, doors are in the first of these walls.
            walls.setdefault(wall.id, (wall, angle))
            # A wall is given by the lower ends of its center line, a box by its center.
            middle = [(wall.ax + wall.bx) / 2, (wall.ay + wall.by) / 2, (wall.az + wall.bz + wall.height) / 2]
            rows.append([*middle, float(np.linalg.norm(along)), wall.thickness, wall.height, angle])
            labels.append("wall")
        for word, openings in (("door", self.doors), ("window", self.windows)):
            for opening in openings:
                # It has no direction and thickness of its own.
                wall, angle = walls[opening.wall_id]
                place = [opening.x, opening.y, opening.z]
                rows.append([*place, opening.width, wall.thickness, opening.height, angle])
                labels.append(word)
        for box in self.boxes:
            rows.append([box.x, box.y, box.z, box.sx, box.sy, box.sz, box.angle])
            labels.append(box.label)
        return np.array(rows, dtype=np.float64).reshape(-1, 7), labels

    def corners(self) -> np.ndarray:
        """Return the corners `(boxes, 8, 3)` of what `as_boxes` returns: four of the bottom, then those above them."""
        # Leveled, since boxes of another axis have sizes and angles in the frame where z points up.
        boxes, _ = self.with_up_axis("z").as_boxes()
        return box_corners(torch.from_numpy(boxes)).numpy() @ self.upright_rotation

    def to_dict(self) -> dict[str, Any]:
        """Return the entities by kind, the up axis and, of a tilted layout, what points up, for JSON."""
        names = ("walls", "doors", "windows", "boxes")
        entities = {name: [dataclasses.asdict(one) for one in getattr(self, name)] for name in names}
        return {**entities, "up_axis": self.up_axis} | ({} if self.up is None else {"up": list(self.up)})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Layout:
        """Build from what `to_dict` returned."""
        settings = dict(content)
        up = settings.get("up")
        if up is not None:
            settings["up"] = tuple(up)
        for name, kind in {"walls": Wall, "doors": Door, "windows": Window, "boxes": Box}.items():
            settings[name] = tuple(kind(**fields) for fields in settings.get(name, ()))
        return cls(**settings)


def read_lines(
    lines: Iterable[str], *, strict: bool = False, keep_unclosed: bool = False
) -> Iterator[Entity | DroppedLine]:
    """Read lines one by one, as they are written; arguments and errors are those of `Layout.parse`."""
    walls: set[int] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            # `walls` has those of earlier lines: a model cannot refer to what it has not written.
            entity = _read_line(line, walls, keep_unclosed, strict)
            # After reading, whose errors say more about what is wrong.
            if strict and not _LINE.fullmatch(line):
                raise ValueError("not exactly of the form wall_0=Wall(…), door_0=Door(wall_0,…) and so on")
            if strict and isinstance(entity, Wall):
                if entity.id in walls:
                    raise ValueError(f"wall_{entity.id} is in an earlier line too, so doors may be in either")
                # In bins, which are whole numbers, the ends of a short wall may meet; the released program writes it.
                is_in_bins = all(float(value).is_integer() for value in dataclasses.astuple(entity))
                if (entity.ax, entity.ay) == (entity.bx, entity.by) and not is_in_bins:
                    raise ValueError("has no length")
        except ValueError as error:
            if strict:
                raise ValueError(f"line {number}, {line!r:.80}: {error}") from None
            yield DroppedLine(number, line, str(error))
            continue
        if isinstance(entity, Wall):
            walls.add(entity.id)
        yield entity


def _read_line(line: str, walls: set[int], keep_unclosed: bool, strict: bool) -> Entity:
    """Read a line; see `Layout.parse`."""
    name = line.partition("=")[0]
    word, *rest = name.split("_")
    if word not in KINDS:
        raise ValueError(f"begins with {word!r:.40}; expected one of {', '.join(KINDS)}")
    # A name may have further words after its number, which the released program passes over.
    number = _number(rest[0] if rest else "", int, " after the name; expected a whole number")
    # What stands between the name and the parenthesis is not compared, as in the released program.
    kind: Any = KINDS[word]
    start = line.find("(")
    end = line.find(")")
    if start < 0 or (end < 0 and not keep_unclosed):
        raise ValueError(f"{'(' if start < 0 else ')'} is missing")
    # Without a closing parenthesis `end` is -1, which drops the last character: the released program's rule.
    arguments = line[start + 1 : end].split(",")
    first: dict[str, Any] = {}
    if kind is Box:
        first["label"] = arguments.pop(0)
    elif kind is not Wall:
        _, found, wall_number = arguments.pop(0).partition("_")
        wall = _number(wall_number.split("_")[0] if found else "", int, " of the wall; expected a whole number")
        if wall not in walls:
            raise ValueError(f"wall_{wall} is in no earlier line")
        first["wall_id"] = wall
    names = number_names(kind)
    if len(arguments) < len(names):
        raise ValueError(f"has {len(arguments)} numbers; expected {len(names)}")
    # Further arguments are passed over, as in the released program.
    values = {name: _number(text) for name, text in zip(names, arguments, strict=False)}
    # A sign of a size has no meaning; only a strict reading refuses it.
    if kind is Box and not strict:
        values |= {name: abs(values[name]) for name in ("sx", "sy", "sz")}
    return kind(id=number, **first, **values)


def _number(text: str, kind: type = float, expected: str = "; expected a finite number") -> Any:
    try:
        value = kind(text)
        is_number = math.isfinite(value)
    except (ValueError, OverflowError):  # an integer may be beyond all floats
        is_number = False
    if not is_number:
        raise ValueError(f"{text!r:.40}{expected}")
    return value
