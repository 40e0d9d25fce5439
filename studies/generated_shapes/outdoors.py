"""Generated vehicles, buildings, plants and animals. Each function draws one object as a list of parts, y up."""

from __future__ import annotations

import numpy as np

from studies.generated_shapes.furniture import Parts
from studies.generated_shapes.surfaces import (
    Draw,
    arc,
    ball,
    box,
    cylinder,
    revolved,
    ring_of,
    rod,
    sheet,
    slab,
    tube,
    turned,
    wedge,
)


def wheels(r: Draw, places: list[float], across: float, radius: float) -> Parts:
    """Draw a pair of wheels at each place along x."""
    one = turned(cylinder(radius, r(0.06, 0.12), sections=14), 90, "x")
    return [one + (x, radius, z) for x in places for z in (-across, across)]


def car(r: Draw) -> Parts:
    """Draw a low body with a cabin: sedan, hatchback, pick-up or open."""
    length, wide, low, rise = r(0.8, 1.1), r(0.32, 0.45), r(0.2, 0.3), r(0.2, 0.35)
    radius = r(0.12, 0.2)
    parts = [wedge((2 * length, low, 2 * wide), (r(0.9, 1.0), 0.95), (0, 0.7 * radius, 0))]
    place, size = r(-0.35, 0.2) * length, r(0.7, 1.3) * length
    if r.yes(0.9):
        parts.append(wedge((size, rise, 1.8 * wide), (r(0.5, 0.9), 0.85), (place, 0.7 * radius + low, 0)))
    return [*parts, *wheels(r, [-0.6 * length, 0.6 * length], wide, radius)]


def truck(r: Draw) -> Parts:
    """Draw a cabin with a load: a box, a tank, a flat bed or an open one; a van where both join."""
    length, wide, radius = r(0.9, 1.6), r(0.35, 0.45), r(0.13, 0.2)
    high, cabin = r(0.5, 0.85), r(0.35, 0.55)
    base = 0.9 * radius
    parts = [wedge((cabin, r(0.5, 0.9) * high, 2 * wide), (r(0.6, 1.0), 0.95), (length + cabin / 2 - 0.1, base, 0))]
    style = r.whole(0, 3)
    if style <= 1:
        parts.append(box((2 * length - 0.15, high, 2 * wide), (0, base + 0.05, 0)))
    elif style == 2:
        tank = turned(cylinder(0.95 * wide, 1.8 * length), 90, "z") + (0.9 * length, base + wide, 0)
        parts += [tank, box((2 * length, 0.05, 1.8 * wide), (0, base, 0))]
    else:
        parts.append(box((2 * length - 0.1, 0.08, 2 * wide), (0, base, 0)))
        parts += [box((2 * length - 0.1, r(0.15, 0.3), 0.03), (0, base, a * wide)) for a in (-1, 1)]
    places = [*np.linspace(-0.8, -0.4, r.whole(1, 2)) * length, length + cabin / 2]
    return [*parts, *wheels(r, places, wide, radius)]


def bus(r: Draw) -> Parts:
    """Draw a long high body on wheels, some with a second deck or a trailer."""
    length, wide, high, radius = r(0.9, 1.6), r(0.32, 0.42), r(0.5, 0.75), r(0.1, 0.17)
    parts = [wedge((2 * length, high, 2 * wide), (r(0.93, 1.0), r(0.85, 1.0)), (0, 0.8 * radius, 0))]
    if r.yes(0.25):
        parts.append(box((2 * length, 0.7 * high, 2 * wide), (0, 0.8 * radius + high, 0)))
    places = list(np.linspace(-0.7, 0.7, r.whole(2, 3)) * length)
    if r.yes(0.25):
        parts.append(box((length, high, 2 * wide), (-1.6 * length, 0.8 * radius, 0)))
        places.append(-1.6 * length)
    if r.yes(0.4):
        parts.append(box((0.4 * length, 0.08, wide), (r(-0.5, 0.5) * length, 0.8 * radius + high, 0)))
    return [*parts, *wheels(r, places, wide, radius)]


def plane(r: Draw) -> Parts:
    """Draw a body with wings and a tail; engines, struts or floats on some."""
    length, radius, span, chord = r(0.8, 1.2), r(0.07, 0.14), r(0.7, 1.2), r(0.15, 0.35)
    hull = revolved([(0, -length), (radius, -0.6 * length), (radius, 0.5 * length), (0.2 * radius, length)])
    parts = [turned(hull, 90, "z")]

    def wing(x: float, y: float, half: float, deep: float, sweep: float) -> np.ndarray:
        outline = [(x, -half), (x + deep * 0.5, -half), (x + deep + sweep, 0), (x + deep * 0.5, half), (x, half),
                   (x + sweep, 0)]  # fmt: skip
        return slab(outline, 0.03, "xz") + (0, y, 0)

    level, sweep = r(-0.8, 1.0) * radius, r(0, 0.4)
    parts.append(wing(-0.2, level, span, chord, sweep))
    if r.yes(0.15):
        parts.append(wing(-0.2, level + 0.25, span, chord, sweep))
    end = 1 if r.yes() else -1
    parts += [wing(end * 0.85 * length - 0.1, 0.0, 0.35 * span, 0.7 * chord, 0.3 * sweep),
              slab([(0.7 * length * end, 0), (length * end, 0), (length * end, r(0.2, 0.4))], 0.03)]  # fmt: skip
    if r.yes():
        engine = turned(cylinder(0.06, 0.25), 90, "z")
        parts += [engine + (0.1, level - 0.07, side * 0.4 * span) for side in (-1, 1)]
    return parts


def boat(r: Draw) -> Parts:
    """Draw a hull with a cabin, a mast with a sail, a funnel, or open with benches."""
    length, wide, high = r(0.7, 1.2), r(0.18, 0.35), r(0.15, 0.35)
    share = np.linspace(-1, 1, 12)
    beam = wide * np.sqrt(np.clip(1 - np.abs(share) ** r(2, 4), 0, 1)) * (1 if r.yes() else np.sqrt((2.1 - share) / 3))
    angles = np.linspace(0, np.pi, 9)
    grid = np.stack(np.broadcast_arrays(
        length * share[:, None], -high * np.sin(angles) * (beam / wide)[:, None], beam[:, None] * np.cos(angles),
    ), axis=-1)  # fmt: skip
    parts = [sheet(grid)]
    style = r.whole(0, 3)
    if style == 0:
        top = r(0.8, 1.6)
        parts += [
            rod((0, -high / 2, 0), (0, top, 0), 0.02),
            slab([(0.03, 0.15), (0.7 * length, 0.15), (0.03, top)], 0.015),
        ]
        if r.yes():
            parts.append(slab([(-0.03, 0.15), (-0.6 * length, 0.15), (-0.03, 0.9 * top)], 0.015))
    elif style == 1:
        parts.append(wedge((r(0.5, 1.0) * length, r(0.15, 0.4), 1.4 * wide), (0.8, 0.9), (r(-0.3, 0.3), 0, 0)))
    elif style == 2:
        parts += [box((length, 0.15, 1.4 * wide)), cylinder(r(0.05, 0.1), r(0.3, 0.5), (r(-0.2, 0.2), 0.1, 0))]
    else:
        parts += [box((0.1, 0.02, 1.8 * wide), (x, -0.05, 0)) for x in np.linspace(-0.5, 0.5, r.whole(1, 3)) * length]
    return parts


def rocket(r: Draw) -> Parts:
    """Draw a pointed body with fins or boosters."""
    radius, height = r(0.1, 0.22), r(0.8, 1.5)
    nose, narrow = r(0.2, 0.6), r(0.6, 1.0)
    profile = [(0, 0), (radius, 0), (radius, 0.5 * height), (narrow * radius, 0.6 * height), (narrow * radius, height),
               (0.6 * narrow * radius, height + 0.6 * nose), (0, height + nose)]  # fmt: skip
    parts, count = [revolved(profile)], r.whole(3, 5)
    if r.yes(0.75):
        reach = r(0.12, 0.4)
        fin = slab([(radius, 0.4), (radius + reach, r(-0.1, 0.1)), (radius, 0)], 0.02)
        parts += ring_of(fin, count)
    if r.yes(0.35):
        booster = revolved([(0, 0), (0.5 * radius, 0), (0.5 * radius, 0.5 * height), (0, 0.65 * height)])
        parts += ring_of(booster + (1.5 * radius, 0, 0), r.whole(2, 4))
    return parts


def house(r: Draw) -> Parts:
    """Walls with a gabled, hipped or flat roof; a chimney, a wing or a porch on some."""
    x, z, high, rise = r(0.4, 0.8), r(0.35, 0.6), r(0.35, 0.8), r(0.2, 0.6)
    style = r.whole(0, 3)
    tops = [(1.0, 0.02), (r(0.3, 0.7), 0.02), (0.02, 0.02), (0.98, 0.98)]
    roof = wedge((2.2 * x, 0.08 if style == 3 else rise, 2.2 * z), tops[style], (0, high, 0))
    parts = [box((2 * x, high, 2 * z)), roof]
    if r.yes(0.4):
        parts.append(box((0.12, rise, 0.12), (r(-0.6, 0.6) * x, high + 0.2 * rise, r(-0.4, 0.4) * z)))
    if r.yes(0.35):
        low = r(0.5, 1.0) * high
        parts += [box((x, low, 0.8 * z), (r(-0.4, 0.4) * x, 0, 1.3 * z)),
                  wedge((1.1 * x, 0.6 * rise, 0.9 * z), (0.02, 1.0), (0, low, 1.3 * z))]  # fmt: skip
    return parts


def tower(r: Draw) -> Parts:
    """Draw a high body, round or square, straight or in steps, with a roof, merlons or a spire."""
    wide, high, steps = r(0.15, 0.35), r(0.5, 1.0), r.whole(1, 3)
    round_body, taper = r.yes(), r(0.6, 1.0)
    parts, level = [], 0.0
    for step in range(steps):
        own = wide * taper**step
        if round_body:
            parts.append(cylinder(own, high, (0, level, 0), top=own * r(0.8, 1.0)))
        else:
            parts.append(wedge((2 * own, high, 2 * own), (r(0.8, 1.0),) * 2, (0, level, 0)))
        level += high
    end = wide * taper ** (steps - 1)
    style = r.whole(0, 2)
    if style == 0:
        parts.append(revolved([(1.2 * end, level), (0, level + r(0.2, 0.7))], sections=20 if round_body else 4))
    elif style == 1:
        parts += ring_of(box((0.5 * end, 0.1, 0.4 * end), (0.9 * end, level, 0)), r.whole(4, 6))
    else:
        parts.append(rod((0, level, 0), (0, level + r(0.2, 0.6), 0), 0.02))
    return parts


def bridge(r: Draw) -> Parts:
    """Draw a deck on piers or an arch, some hung from towers, mostly with rails."""
    length, wide, level = r(0.9, 1.3), r(0.12, 0.3), r(0.2, 0.5)
    bow = r(0, 0.3) if r.yes(0.4) else 0.0
    x = np.linspace(-length, length, 10)
    y = level + bow * (1 - (x / length) ** 2)
    top = np.stack([x, y, 0 * x], axis=1)
    grid = np.stack(
        [top + (0, dy, dz) for dy, dz in ((0, -wide), (0, wide), (-0.06, wide), (-0.06, -wide), (0, -wide))]
    )
    parts = [sheet(grid)]
    style = r.whole(0, 2)
    if style == 0:
        places = np.linspace(-0.8, 0.8, r.whole(2, 5)) * length
        parts += [box((0.1, float(np.interp(p, x, y)), 1.6 * wide), (p, 0, 0)) for p in places]
    elif style == 1:
        parts += [tube(arc((0, 0, side), (0.9 * length, level + bow), 0, 180), 0.04) for side in (-wide, wide)]
    else:
        tall = r(0.6, 1.0)
        for side in (-wide, wide):
            parts += [rod((p, 0, side), (p, tall, side), 0.03) for p in (-0.5 * length, 0.5 * length)]
            parts.append(tube(arc((0, tall, side), (0.5 * length, tall - level - 0.05), 180, 360), 0.015))
    if r.yes(0.6):
        for side in (-wide, wide):
            parts.append(tube(top + (0, 0.12, side), 0.012))
            parts += [rod(p + (0, 0, side), p + (0, 0.12, side), 0.01) for p in top[::2]]
    return parts


def ladder(r: Draw) -> Parts:
    """Two rails with rungs, straight, leaning or as a folding pair."""
    height, wide, count, thick = r(0.9, 1.8), r(0.12, 0.3), r.whole(4, 9), r(0.015, 0.035)
    narrow = r(0.6, 1.0)
    one = [rod((a * wide, 0, 0), (a * narrow * wide, height, 0), thick) for a in (-1, 1)]
    flat = r.yes(0.3)
    for share in (np.arange(count) + 0.7) / count:
        half = wide * (1 + (narrow - 1) * share)
        rung = box((2 * half, 0.02, 0.1), (0, share * height, 0)) if flat else None
        one.append(rod((-half, share * height, 0), (half, share * height, 0), 0.8 * thick) if rung is None else rung)
    lean = r(10, 25)
    leaning = [turned(part, lean, "x", (0, height, 0)) for part in one]
    if r.yes(0.4):
        return [*leaning, *(turned(part, -lean, "x", (0, height, 0)) for part in one[: None if r.yes() else 2])]
    return leaning if r.yes() else one


def fence(r: Draw) -> Parts:
    """Pickets on rails, bars in a frame, or posts with boards; a gate where it is narrow."""
    length, height, count = r(0.5, 1.2), r(0.4, 0.9), r.whole(4, 11)
    places, thick = np.linspace(-length, length, count), r(0.01, 0.03)
    style = r.whole(0, 2)
    rails = [box((2.1 * length, 0.04, 0.03), (0, level * height, 0.03)) for level in (0.2, 0.8)]
    if style == 0:
        wide = 0.6 * length / count
        outline = [(-wide, 0), (wide, 0), (wide, height), (0, height * r(1.0, 1.2)), (-wide, height)]
        return [*rails, *(slab(outline, 0.02) + (p, 0, 0) for p in places)]
    if style == 1:
        return [*rails, *(rod((p, 0, 0), (p, height * r(1.0, 1.1), 0), thick) for p in places)]
    posts = [box((0.06, height, 0.06), (p, 0, 0)) for p in places[:: max(1, count // 3)]]
    boards = np.linspace(0.2, 0.9, r.whole(2, 4)) * height
    return [*posts, *(box((2.1 * length, 0.09, 0.02), (0, level, 0.04)) for level in boards)]


def tree(r: Draw) -> Parts:
    """Draw a trunk with one crown or several, some with bare branches."""
    height, thick = r(0.4, 1.0), r(0.03, 0.09)
    parts = [rod((0, 0, 0), (r(-0.1, 0.1), height, 0), thick, 0.6 * thick)]
    if r.yes(0.25):
        for _ in range(r.whole(5, 9)):
            start, reach, angle = r(0.4, 1.0) * height, r(0.25, 0.6), r(0, 2 * np.pi)
            end = (reach * np.cos(angle), start + r(0.1, 0.5), reach * np.sin(angle))
            parts.append(rod((0, start, 0), end, 0.4 * thick, 0.01))
        return parts
    count, wide = r.whole(1, 5), r(0.25, 0.5)
    for number in range(count):
        size = wide * (1 if number == 0 else r(0.4, 0.8))
        spread = 0 if number == 0 else wide
        center = (r(-1, 1) * spread, height + r(0.2, 0.8) * wide, r(-1, 1) * spread)
        parts.append(ball((size, size * r(0.7, 1.5), size * r(0.8, 1.2)), center))
    return parts


def conifer(r: Draw) -> Parts:
    """Draw a trunk with one cone or with tiers of them."""
    height, wide, count = r(0.9, 1.6), r(0.2, 0.45), r.whole(1, 5)
    low = r(0.08, 0.35)
    parts = [cylinder(r(0.03, 0.07), low + 0.1)]
    levels = np.linspace(low, height, count + 1)
    for number, (start, end) in enumerate(zip(levels, levels[1:], strict=False)):
        own = wide * (1 - 0.75 * number / count)
        parts.append(
            revolved(
                [(0.02, start), (own, start), (0.15 * own if number < count - 1 else 0, end)], sections=r.whole(7, 20)
            )
        )
    return parts


def cactus(r: Draw) -> Parts:
    """Draw a column with arms, a ball or stacked pads, some in a pot."""
    height, thick, base = r(0.6, 1.2), r(0.08, 0.16), 0.0
    parts = []
    if r.yes(0.4):
        base = r(0.15, 0.3)
        parts.append(cylinder(r(0.12, 0.2), base, top=r(0.2, 0.28)))
    style = r.whole(0, 3)
    if style == 0:
        size = r(0.2, 0.35)
        return [*parts, ball((size, size * r(0.8, 1.3), size), (0, base + 0.8 * size, 0))]
    if style == 1:
        pads = r.whole(2, 5)
        for number in range(pads):
            center = (r(-0.2, 0.2), base + 0.2 + 0.3 * number, r(-0.08, 0.08))
            parts.append(turned(ball((r(0.12, 0.2), 0.2, 0.05), center), r(-40, 40), "z", center))
        return parts
    parts.append(ball((thick, height / 2, thick), (0, base + height / 2, 0)))
    for number in range(r.whole(1, 3)):
        level, reach, rise = base + r(0.25, 0.55) * height, r(0.2, 0.35), r(0.15, 0.4)
        arm = tube([(0, level, 0), (0.8 * reach, level, 0), (reach, level + 0.1, 0), (reach, level + rise, 0)],
                   [0.6 * thick, 0.6 * thick, 0.6 * thick, 0.3 * thick])  # fmt: skip
        parts.append(turned(arm, 180 * number + r(-30, 30)))
    return parts


def mushroom(r: Draw) -> Parts:
    """Draw a stem with a domed, conical or flat cap; a group on some."""
    parts = []
    for number in range(1 if r.yes(0.75) else r.whole(2, 3)):
        size = 1.0 if number == 0 else r(0.4, 0.7)
        at = (0, 0, 0) if number == 0 else (r(-0.5, 0.5), 0, r(-0.5, 0.5))
        height, wide, rise = r(0.3, 0.9), r(0.25, 0.5), r(0.1, 0.45)
        stem = revolved([(0, 0), (r(0.06, 0.18), 0), (r(0.04, 0.1), height)])
        cap = ball((wide, rise, wide), (0, height, 0), r(-30, 10), 90)
        parts += [size * stem + at, size * cap + at]
    return parts


def four_legs(r: Draw, length: float, body: float, height: float, thick: float) -> Parts:
    """Draw a trunk along x on four legs that stand or walk."""
    parts = [ball((length, body, body * r(0.7, 1.0)), (0, height, 0))]
    for x in (-0.7, 0.7):
        for z in (-0.5, 0.5):
            step = r(-0.2, 0.2) * height
            parts.append(
                rod((x * length, height, z * body), (x * length + step, 0, z * body), 1.3 * thick, 0.8 * thick)
            )
    return parts


def dog(r: Draw) -> Parts:
    """Draw a short-legged animal with a round head, ears and a tail; long or stocky."""
    length, body = r(0.35, 0.65), r(0.12, 0.24)
    height, size = body + r(0.1, 0.4), r(0.1, 0.18)
    head = (length + 0.6 * size, height + body + r(0, 0.2), 0)
    parts = four_legs(r, length, body, height, r(0.03, 0.06))
    parts += [rod((0.8 * length, height, 0), head, 0.7 * body, 0.6 * size), ball((size,) * 3, head),
              rod(head, (head[0] + r(1.0, 2.2) * size, head[1] - 0.3 * size, 0), 0.6 * size, 0.35 * size)]  # fmt: skip
    ear = r(-1.0, 1.4) * size
    base = head[1] + 0.5 * size
    parts += [rod((head[0], base, a * 0.7 * size), (head[0], base + ear, a * size), 0.03) for a in (-1, 1)]
    return [*parts, rod((-length, height, 0), (-length - r(0.1, 0.4), height + r(-0.1, 0.4), 0), 0.03, 0.015)]


def horse(r: Draw) -> Parts:
    """Draw a long-legged animal with a high neck, a long head and a hanging tail; some with horns."""
    length, body = r(0.4, 0.65), r(0.13, 0.24)
    height, neck = body + r(0.3, 0.65), r(0.2, 0.6)
    head = (length + r(0.1, 0.35), height + neck, 0)
    nose = (head[0] + r(0.12, 0.3), head[1] - r(0, 0.25), 0)
    parts = four_legs(r, length, body, height, r(0.025, 0.05))
    parts += [rod((0.7 * length, height, 0), head, 0.6 * body, 0.07), rod(head, nose, 0.08, 0.045)]
    if r.yes(0.3):
        parts += [rod(head, (head[0] - 0.05, head[1] + r(0.1, 0.35), a * r(0.05, 0.25)), 0.02, 0.008) for a in (-1, 1)]
    return [*parts, rod((-length, height, 0), (-length - r(0.05, 0.2), height - r(0.1, 0.5), 0), 0.035, 0.02)]


OUTDOORS = (
    car, truck, bus, plane, boat, rocket, house, tower, bridge, ladder, fence, tree, conifer, cactus, mushroom, dog,
    horse,
)  # fmt: skip
