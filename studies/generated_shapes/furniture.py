"""Generated furniture and lamps. Each function draws one object as a list of parts, y up."""

from __future__ import annotations

import numpy as np

from studies.generated_shapes.surfaces import (
    Draw,
    arc,
    ball,
    box,
    cylinder,
    revolved,
    ring_of,
    rod,
    tube,
    turned,
    wedge,
)

Parts = list[np.ndarray]


def legs(r: Draw, height: float, x: float, z: float) -> Parts:
    """Draw what holds up a plate of half extents x and z: four legs, a pedestal, panels or runners."""
    style, thick = r.whole(0, 5), r(0.02, 0.05)
    corners = [(a * x, b * z) for a in (-1, 1) for b in (-1, 1)]
    if style <= 1:
        parts = [box((thick, height, thick), (a, 0, b)) for a, b in corners]
    elif style == 2:
        splay = r(1.0, 1.35)
        parts = [rod((splay * a, 0, splay * b), (0.85 * a, height, 0.85 * b), 0.4 * thick, 0.7 * thick)
                 for a, b in corners]  # fmt: skip
    elif style == 3:
        foot = box((0.12, 0.03, 1.2 * z), (0, 0, 0.6 * z)) if r.yes() else None
        pole = cylinder(r(0.025, 0.06), height)
        if foot is None:
            return [pole, cylinder(r(0.5, 0.9) * z, 0.03)]
        return [pole, *ring_of(foot, r.whole(3, 5))]
    elif style == 4:
        return [box((thick, height, 2 * z), (a * x, 0, 0)) for a in (-1, 1)]
    else:
        parts = []
        for a in (-1, 1):
            frame = [(a * x, height, -z), (a * x, 0, -z), (a * x, 0, z), (a * x, height, z)]
            parts += [rod(p, q, 0.5 * thick) for p, q in zip(frame, frame[1:], strict=False)]
        return parts
    if r.yes(0.4):
        level = height * r(0.15, 0.6)
        parts += [box((2 * x, 0.6 * thick, 0.6 * thick), (0, level, b * z)) for b in (-1, 1)]
        parts += [box((0.6 * thick, 0.6 * thick, 2 * z), (a * x, level, 0)) for a in (-1, 1)]
    return parts


def plate(r: Draw, x: float, z: float, height: float, round_share: float = 0.4) -> np.ndarray:
    """Draw a plate of half extents x and z that ends at a height, rectangular or round."""
    thick = r(0.02, 0.07)
    if r.yes(round_share):
        return revolved([(0, 0), (x, 0), (x, thick), (0, thick)], (0, height - thick, 0), squash=z / x)
    return box((2 * x, thick, 2 * z), (0, height - thick, 0))


def backrest(r: Draw, x: float, z: float, base: float, rise: float) -> Parts:
    """Draw the back of a seat: a panel, posts with slats or bars, or a bent frame."""
    style = r.whole(0, 3)
    if style == 0:
        parts = [box((2 * x, rise, r(0.02, 0.08)), (0, base, -z))]
    elif style == 1:
        count = r.whole(1, 4)
        parts = [box((0.04, rise, 0.04), (a * x, base, -z)) for a in (-1, 1)]
        parts += [box((2 * x, 0.5 * rise / count, 0.02), (0, base + rise * (n + 0.6) / (count + 0.3), -z))
                  for n in range(count)]  # fmt: skip
    elif style == 2:
        parts = [rod((p, base, -z), (p, base + rise, -z), 0.012) for p in np.linspace(-x, x, r.whole(3, 7))]
        parts.append(box((2.1 * x, 0.06, 0.04), (0, base + rise, -z)))
    else:
        bow = arc((0, base, -z), (x, rise), 0, 180)
        parts = [tube(bow, 0.02)]
        parts += [rod((p, base, -z), (p, base + 0.8 * rise, -z), 0.01) for p in np.linspace(-0.6 * x, 0.6 * x, 4)]
    lean = r(0, 15)
    return [turned(part, -lean, "x", (0, base, -z)) for part in parts]


def stool(r: Draw) -> Parts:
    """Draw a seat without a back, some of them with a low rail."""
    height, x = r(0.4, 0.85), r(0.15, 0.25)
    z = x * r(0.8, 1.1)
    parts = [plate(r, x, z, height, 0.6), *legs(r, height, 0.8 * x, 0.8 * z)]
    return parts + (backrest(r, 0.9 * x, z, height, r(0.06, 0.14)) if r.yes(0.2) else [])


def chair(r: Draw) -> Parts:
    """Draw a seat with a back."""
    height, x = r(0.38, 0.55), r(0.18, 0.26)
    z = x * r(0.85, 1.15)
    return [plate(r, x, z, height, 0.2), *legs(r, height, 0.9 * x, 0.9 * z),
            *backrest(r, 0.9 * x, 0.9 * z, height, r(0.2, 0.6))]  # fmt: skip


def armchair(r: Draw) -> Parts:
    """Draw a chair with arms, upholstered or not."""
    height, x = r(0.35, 0.5), r(0.22, 0.34)
    z = x * r(0.8, 1.1)
    if r.yes():
        thick = r(0.06, 0.14)
        body = box((2 * x, height, 2 * z))
        return [body, box((2 * x, r(0.3, 0.55), thick), (0, height, -z)),
                *(box((thick, height + r(0.1, 0.25), 2 * z), (a * x, 0.02, 0)) for a in (-1, 1))]  # fmt: skip
    rise, thick = r(0.15, 0.28), r(0.015, 0.04)
    parts = [plate(r, x, z, height, 0.1), *legs(r, height, 0.9 * x, 0.9 * z),
             *backrest(r, 0.9 * x, 0.9 * z, height, r(0.25, 0.6))]  # fmt: skip
    for a in (-1, 1):
        parts += [box((2 * thick, thick, 1.8 * z), (a * x, height + rise, 0)),
                  rod((a * x, height, 0.7 * z), (a * x, height + rise, 0.7 * z), thick)]  # fmt: skip
    return parts


def bench(r: Draw) -> Parts:
    """Draw a long seat, with or without a back."""
    height, x, z = r(0.38, 0.5), r(0.45, 0.9), r(0.15, 0.25)
    count = r.whole(1, 4)
    width = 2 * z / count
    seat = [box((2 * x, 0.04, 0.9 * width), (0, height - 0.04, (n + 0.5) * width - z)) for n in range(count)]
    back = backrest(r, 0.95 * x, z, height, r(0.2, 0.5)) if r.yes(0.45) else []
    return [*seat, *legs(r, height, r(0.6, 0.95) * x, 0.9 * z), *back]


def sofa(r: Draw) -> Parts:
    """Draw a long upholstered seat with a back, mostly with arms, some with cushions or a chaise."""
    height, x, z, thick = r(0.3, 0.45), r(0.55, 1.1), r(0.32, 0.48), r(0.1, 0.2)
    foot = r(0, 0.12)
    parts = [box((2 * x, height - foot, 2 * z), (0, foot, 0)),
             box((2 * x, r(0.25, 0.5), thick), (0, height, thick / 2 - z))]  # fmt: skip
    if r.yes(0.8):
        rise = r(0.1, 0.3)
        parts += [box((thick, height + rise - foot, 2 * z), (a * x, foot, 0)) for a in (-1, 1)]
    if r.yes():
        count = r.whole(2, 3)
        parts += [box((1.8 * x / count, 0.1, 1.5 * z), (x * ((2 * n + 1) / count - 1), height, 0.1))
                  for n in range(count)]  # fmt: skip
    if r.yes(0.25):
        parts.append(box((0.6 * x, height - foot, z), (r.whole(0, 1) * 1.4 * x - 0.7 * x, foot, 1.4 * z)))
    if foot > 0.05:
        parts += [box((0.05, foot, 0.05), (a * 0.9 * x, 0, b * 0.9 * z)) for a in (-1, 1) for b in (-1, 1)]
    return parts


def table(r: Draw) -> Parts:
    """Draw a plate on legs, high or low."""
    height, x = r(0.35, 0.8), r(0.3, 0.9)
    z = x if r.yes(0.4) else x * r(0.4, 0.9)
    parts = [plate(r, x, z, height), *legs(r, height, 0.85 * x, 0.85 * z)]
    return parts + ([box((1.5 * x, 0.02, 1.5 * z), (0, r(0.2, 0.5) * height, 0))] if r.yes(0.2) else [])


def desk(r: Draw) -> Parts:
    """Draw a table with drawers on one side or on both, some with a panel behind or a hutch."""
    height, x, z = r(0.65, 0.8), r(0.5, 0.9), r(0.28, 0.4)
    width, depth = r(0.25, 0.45), r(0.15, 1.0)
    parts = [box((2 * x, r(0.02, 0.06), 2 * z), (0, height, 0))]
    parts.append(box((width, depth * height, 1.8 * z), (x - width / 2, (1 - depth) * height, 0)))
    if r.yes(0.35):
        parts.append(box((width, depth * height, 1.8 * z), (width / 2 - x, (1 - depth) * height, 0)))
    if depth < 0.7 or len(parts) == 2:
        parts += [box((0.05, height, 0.05), (a * 0.95 * x, 0, b * 0.9 * z)) for a in (-1, 1) for b in (-1, 1)]
    if r.yes(0.4):
        parts.append(box((1.9 * x, r(0.3, 0.8) * height, 0.02), (0, 0.2 * height, -0.9 * z)))
    if r.yes(0.25):
        rise = r(0.2, 0.5)
        parts += [box((0.03, rise, 0.6 * z), (a * 0.95 * x, height, -0.6 * z)) for a in (-1, 1)]
        parts.append(box((2 * x, 0.03, 0.6 * z), (0, height + rise, -0.6 * z)))
    return parts


def bookcase(r: Draw) -> Parts:
    """Open shelves between sides or posts, some with books."""
    height, x, z, count = r(0.7, 2.0), r(0.25, 0.7), r(0.12, 0.22), r.whole(2, 6)
    levels = np.linspace(0, height, count + 1)
    parts = [box((2 * x, 0.03, 2 * z), (0, level, 0)) for level in levels]
    if r.yes(0.7):
        parts += [box((0.03, height, 2 * z), (a * x, 0, 0)) for a in (-1, 1)]
    else:
        parts += [rod((a * x, 0, b * z), (a * x, height, b * z), 0.015) for a in (-1, 1) for b in (-1, 1)]
    if r.yes():
        parts.append(box((2 * x, height, 0.01), (0, 0, -z)))
    if r.yes(0.3):
        parts.append(box((0.03, height, 2 * z), (r(-0.5, 0.5) * x, 0, 0)))
    for level in levels[:-1]:
        if r.yes(0.4):
            width = r(0.3, 1.5) * x
            parts.append(box((width, r(0.5, 0.8) * height / count, 1.4 * z), (r(-1, 1) * (x - width / 2), level, 0)))
    return parts


def cabinet(r: Draw) -> Parts:
    """Draw a closed body with doors or drawers, on feet or on the ground."""
    height, x, z, foot = r(0.5, 2.0), r(0.25, 0.7), r(0.18, 0.32), r(0, 0.2)
    parts = [box((2 * x, height, 2 * z), (0, foot, 0))]
    if foot > 0.07:
        parts += [box((0.05, foot, 0.05), (a * 0.9 * x, 0, b * 0.9 * z)) for a in (-1, 1) for b in (-1, 1)]
    rows, columns = (r.whole(2, 5), 1) if r.yes() else (1, 2)
    for row in range(rows):
        for column in range(columns):
            at = (x * ((2 * column + 1) / columns - 1), foot + height * (row + 0.1) / rows, z)
            parts.append(box((1.8 * x / columns, 0.8 * height / rows, 0.04), at))
            parts.append(ball((0.03, 0.03, 0.03), (at[0], at[1] + 0.4 * height / rows, z + 0.04)))
    if r.yes(0.3):
        parts.append(box((2.15 * x, 0.04, 2.15 * z), (0, foot + height, 0)))
    return parts


def bed(r: Draw) -> Parts:
    """Draw a mattress in a frame with a headboard, some with a footboard, a canopy or a bunk above."""
    height, x, z = r(0.3, 0.55), r(0.4, 0.9), r(0.9, 1.1)
    thick = r(0.15, 0.3)
    parts = [box((2 * x, thick, 2 * z), (0, height - thick, 0)), *legs(r, height - thick, 0.95 * x, 0.95 * z)]
    parts += backrest(r, x, z, height - thick, r(0.4, 0.9))
    if r.yes():
        parts.append(box((2 * x, r(0.3, 0.6), 0.05), (0, height - thick, z)))
    pillows = r.whole(0, 2)
    parts += [ball((0.7 * x / pillows, 0.08, 0.2), (x * ((2 * n + 1) / pillows - 1), height, 0.25 - z))
              for n in range(pillows)]  # fmt: skip
    if r.yes(0.2):
        top = r(1.3, 2.0)
        parts += [rod((a * x, 0, b * z), (a * x, top, b * z), 0.03) for a in (-1, 1) for b in (-1, 1)]
        parts.append(box((2 * x, r(0.03, 0.2), 2 * z), (0, top - 0.2, 0)))
    return parts


def shade(r: Draw, low: float, rise: float, wide: float) -> np.ndarray:
    """Draw a lampshade: a cone, a drum, a dome or a globe."""
    style = r.whole(0, 3)
    if style == 0:
        return revolved([(wide, low), (wide * r(0.3, 0.7), low + rise)])
    if style == 1:
        return revolved([(wide, low), (wide, low + rise)], squash=r(0.7, 1.0))
    if style == 2:
        return ball((wide, rise, wide), (0, low, 0), 0, 90)
    return ball((wide, wide, wide), (0, low + wide, 0))


def desk_lamp(r: Draw) -> Parts:
    """Draw a foot, a bent arm and a tilted shade; or a short pole with an upright shade."""
    foot = r(0.1, 0.18)
    base = cylinder(foot, r(0.02, 0.06)) if r.yes() else box((2 * foot, 0.03, 1.6 * foot))
    if r.yes(0.3):
        height = r(0.2, 0.35)
        return [base, cylinder(r(0.01, 0.06), height), shade(r, height, r(0.12, 0.25), r(0.1, 0.2))]
    elbow, head = (r(-0.2, 0.0), r(0.25, 0.4), 0.0), (r(0.1, 0.35), r(0.35, 0.6), 0.0)
    arm = [rod((0, 0, 0), elbow, 0.015), rod(elbow, head, 0.015)]
    if r.yes(0.3):
        arm = [tube(arc((0.5 * head[0], 0.6 * head[1], 0), (0.5 * head[0], 0.4 * head[1]), 180, 0), 0.015),
               rod((0, 0, 0), (0, 0.6 * head[1], 0), 0.015)]  # fmt: skip
        head = (head[0], 0.6 * head[1], 0.0)
    hood = shade(r, -0.15, 0.17, r(0.08, 0.14))
    return [base, *arm, turned(hood, r(-70, 0), "z") + head]


def floor_lamp(r: Draw) -> Parts:
    """Draw a high pole or a tripod with a shade."""
    height, thick = r(1.0, 1.8), r(0.01, 0.025)
    if r.yes(0.3):
        stand = ring_of(rod((r(0.2, 0.4), 0, 0), (0, 0.8 * height, 0), thick), 3)
    else:
        stand = [cylinder(r(0.1, 0.25), r(0.02, 0.06))]
    wide, rise = r(0.12, 0.3), r(0.15, 0.4)
    if r.yes(0.25):
        reach = r(0.2, 0.6)
        bow = tube(arc((reach, height, 0), (reach, 0.25), 180, 20), thick)
        return [
            *stand,
            rod((0, 0, 0), (0, height, 0), thick),
            bow,
            shade(r, -rise, rise, wide) + (2 * reach, height, 0),
        ]
    return [*stand, rod((0, 0, 0), (0, height, 0), thick), shade(r, height - 0.3 * rise, rise, wide)]


def candlestick(r: Draw) -> Parts:
    """Draw a turned stem with a candle, or arms with several."""
    height, foot = r(0.3, 0.7), r(0.08, 0.2)
    levels = np.linspace(0.03, height, r.whole(4, 8))
    stem = [(0, 0), (foot, 0), (foot, 0.02), *((r(0.012, 0.05), level) for level in levels)]
    candle = cylinder(r(0.012, 0.03), r(0.05, 0.3), (0, height, 0), sections=10)
    if r.yes(0.5):
        return [revolved(stem), candle, cylinder(r(0.04, 0.08), 0.01, (0, height, 0))]
    reach, level = r(0.12, 0.25), height * r(0.6, 0.95)
    bow = tube(arc((reach / 2, level, 0), (reach / 2, 0.5 * reach), 180, 360), 0.012)
    arms = ring_of(bow, count := r.whole(2, 5))
    return [revolved(stem), candle, *arms, *ring_of(cylinder(0.02, r(0.08, 0.2), (reach, level, 0)), count)]


def umbrella(r: Draw) -> Parts:
    """Draw a domed or conical canopy on a pole with a hook, or a parasol on a foot."""
    height, wide, rise = r(0.7, 1.2), r(0.4, 0.75), r(0.12, 0.4)
    if r.yes():
        canopy = ball((wide, rise, wide), (0, height - rise, 0), 0, 90)
    else:
        canopy = wedge((2 * wide, rise, 2 * wide), (0, 0), (0, height - rise, 0))
    low = canopy if r.yes(0.8) else revolved([(wide, height - 1.5 * rise), (0.02, height)], sections=r.whole(5, 8))
    end = cylinder(r(0.1, 0.3), 0.05) if r.yes(0.4) else tube(arc((0.07, 0.05, 0), (0.07, 0.07), 180, 360), 0.015)
    return [low, rod((0, 0.04, 0), (0, height + 0.05, 0), r(0.01, 0.025)), end]


FURNITURE = (
    stool, chair, armchair, bench, sofa, table, desk, bookcase, cabinet, bed, desk_lamp, floor_lamp, candlestick,
    umbrella,
)  # fmt: skip
