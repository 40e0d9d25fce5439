"""Generated vessels and tools. Each function draws one object as a list of parts, y up."""

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
    rod,
    slab,
    tube,
    turned,
    wedge,
)


def wall(r: Draw, low: float, high: float, height: float, belly: float) -> np.ndarray:
    """Draw the profile of a vessel from its bottom to its rim.

    Args:
        r: Random choices.
        low: Radius of the bottom.
        high: Radius of the rim.
        height: Height of the rim.
        belly: Radius added in between, at a height that is drawn.
    """
    share = np.linspace(0, 1, 9)
    bulge = np.sin(np.pi * share ** r(0.6, 1.6))
    radius = low + (high - low) * share + belly * bulge
    return np.concatenate([[[0, 0]], np.stack([radius.clip(0.01), height * share], axis=1)])


def radius_at(profile: np.ndarray, height: float) -> float:
    """Return the radius of a wall at a height."""
    return float(np.interp(height, profile[1:, 1], profile[1:, 0]))


def handle(r: Draw, profile: np.ndarray, low: float, high: float) -> np.ndarray:
    """Draw a handle on the side of a vessel, between two heights; round, square or an ear."""
    start, end = radius_at(profile, low) - 0.01, radius_at(profile, high) - 0.01
    reach, thick = r(0.5, 1.0) * (high - low), r(0.02, 0.04)
    out = max(start, end) + reach
    if r.yes(0.3):
        path = np.array([(start, low, 0), (out, low, 0), (out, high, 0), (end, high, 0)])
        return np.concatenate([rod(p, q, thick) for p, q in zip(path, path[1:], strict=False)])
    angles = np.linspace(-np.pi / 2, np.pi / 2, 12)
    x = np.interp(np.linspace(0, 1, 12), [0, 1], [start, end]) + reach * np.cos(angles)
    y = (low + high) / 2 + (high - low) / 2 * np.sin(angles)
    return tube(np.stack([x, y, 0 * x], axis=1), thick)


def mug(r: Draw) -> Parts:
    """Draw a low vessel with one handle; a cup with a saucer too."""
    height, low = r(0.5, 1.1), r(0.25, 0.45)
    profile = wall(r, low, low * r(0.9, 1.5), height, r(-0.05, 0.1))
    parts = [revolved(profile), handle(r, profile, r(0.1, 0.3) * height, r(0.7, 0.95) * height)]
    return parts + ([revolved([(0, 0), (0.4, 0), (r(0.6, 0.9), 0.1)])] if r.yes(0.2) else [])


def bowl(r: Draw) -> Parts:
    """Draw a wide open vessel, deep or as flat as a plate."""
    high, height = r(0.5, 0.8), r(0.1, 0.6)
    low = high * r(0.3, 0.7)
    profile = wall(r, low, high, height, r(0, 0.12))
    parts = [revolved(profile, squash=r(0.7, 1.0) if r.yes(0.3) else 1.0)]
    if r.yes(0.3):
        parts.append(revolved([(0.7 * low, -0.08), (0.6 * low, 0)]))
    return parts


def vase(r: Draw) -> Parts:
    """Draw a high open vessel with a belly or a flared rim, some with two handles or flowers."""
    height, low = r(0.8, 1.5), r(0.12, 0.3)
    profile = wall(r, low, r(0.1, 0.4), height, r(-0.05, 0.3))
    parts = [revolved(profile)]
    if r.yes(0.4):
        parts.append(revolved([(profile[-1, 0], height), (profile[-1, 0] + r(0.03, 0.15), height + r(0.05, 0.2))]))
    if r.yes(0.25):
        ear = handle(r, profile, 0.55 * height, 0.85 * height)
        parts += [ear, turned(ear, 180)]
    if r.yes(0.2):
        for _ in range(r.whole(2, 5)):
            tip = (r(-0.3, 0.3), height + r(0.2, 0.5), r(-0.3, 0.3))
            parts += [rod((0, height, 0), tip, 0.01), ball((0.07, 0.07, 0.07), tip)]
    return parts


def bottle(r: Draw) -> Parts:
    """Draw a body with a narrow neck, round or flat, mostly with a cap."""
    radius, height = r(0.15, 0.32), r(0.5, 1.0)
    neck, shoulder, rise = radius * r(0.25, 0.55), r(0.05, 0.35), r(0.08, 0.35)
    waist = radius * (r(0.75, 0.95) if r.yes(0.4) else 1)
    profile = [(0, 0), (radius, 0), (waist, height / 2), (radius, height), (0.8 * radius, height + 0.4 * shoulder),
               (neck, height + shoulder), (neck, height + shoulder + rise)]  # fmt: skip
    parts = [revolved(profile, squash=r(0.5, 0.8) if r.yes(0.25) else 1)]
    top = height + shoulder + rise
    if r.yes(0.7):
        parts.append(cylinder(neck * r(1.05, 1.5), r(0.05, 0.12), (0, top, 0)))
    if r.yes(0.12):
        parts.append(handle(r, np.asarray(profile), 0.5 * height, height))
    return parts


def jug(r: Draw) -> Parts:
    """Draw a high vessel with a handle and mostly a spout at its rim."""
    height, low = r(0.9, 1.5), r(0.22, 0.36)
    profile = wall(r, low, r(0.18, 0.36), height, r(0, 0.18))
    parts = [revolved(profile), handle(r, profile, r(0.15, 0.4) * height, r(0.75, 0.95) * height)]
    rim = profile[-1, 0]
    if r.yes(0.8):
        lip = slab([(-rim, 0.9 * height), (-rim - r(0.08, 0.2), height + 0.04), (-rim, height)], 0.25 * rim + 0.05)
        parts.append(lip)
    if r.yes(0.25):
        parts.append(revolved([(rim, height), (0.5 * rim, height + 0.06), (0, height + r(0.06, 0.15))]))
    return parts


def pot(r: Draw) -> Parts:
    """Draw a cooking pot with two handles or a long one, with or without a lid."""
    radius, height = r(0.4, 0.6), r(0.15, 0.7)
    profile = wall(r, radius * r(0.85, 1.0), radius, height, r(0, 0.06))
    parts = [revolved(profile)]
    level = height * r(0.6, 0.95)
    if r.yes():
        parts.append(rod((radius, level, 0), (radius + r(0.5, 1.0), level + r(0, 0.15), 0), 0.04))
    else:
        ear = tube(arc((radius - 0.02, level, 0), (r(0.1, 0.2), r(0.12, 0.2)), -90, 90, "xz"), 0.03)
        parts += [ear, turned(ear, 180)]
    if r.yes(0.5):
        parts += [
            ball((radius, r(0.03, 0.2), radius), (0, height, 0), 0, 90),
            ball((0.06, 0.06, 0.06), (0, height + 0.15, 0)),
        ]
    return parts


def bucket(r: Draw) -> Parts:
    """Draw a conical open vessel with a bail above it, hanging down or upright."""
    low, height = r(0.25, 0.4), r(0.5, 0.9)
    high = low * r(1.05, 1.5)
    bail = arc((0, height, 0), (high, r(0.7, 1.2) * high), 0, 180)
    fall = r(60, 100) if r.yes(0.4) else r(-10, 10)
    parts = [revolved([(0, 0), (low, 0), (high, height)]), turned(tube(bail, 0.018), fall, "x", (0, height, 0))]
    return parts + ([revolved([(high, height - 0.06), (1.06 * high, height)])] if r.yes() else [])


def goblet(r: Draw) -> Parts:
    """Draw a bowl on a stem with a foot, or a trophy with two handles."""
    height, stem, wide = r(0.3, 0.8), r(0.02, 0.05), r(0.15, 0.35)
    cup = wall(r, stem, wide * r(0.6, 1.2), r(0.25, 0.6), wide * r(0, 0.6))[1:] + [0, height]
    foot = r(0.15, 0.3)
    parts = [revolved([(0, 0), (foot, 0), (stem, r(0.02, 0.15)), (stem, height)]), revolved(cup)]
    if r.yes(0.2):
        ear = handle(r, np.concatenate([[[0, 0]], cup]), cup[2, 1], cup[-2, 1])
        parts += [ear, turned(ear, 180)]
    return parts


def barrel(r: Draw) -> Parts:
    """Draw a closed drum, bulging or straight with rings, upright or lying."""
    radius, height = r(0.28, 0.42), r(0.7, 1.1)
    profile = wall(r, radius, radius * r(0.9, 1.05), height, r(0, 0.14))
    parts = [revolved([*profile, (0, height)])]
    for share in np.linspace(0.1, 0.9, r.whole(2, 4)):
        hoop = radius_at(profile, share * height) + 0.01
        parts.append(
            revolved([(hoop, share * height - 0.03), (hoop + 0.015, share * height), (hoop, share * height + 0.03)])
        )
    return [turned(part, 90, "z") for part in parts] if r.yes(0.3) else parts


def teapot(r: Draw) -> Parts:
    """Draw a round body with a spout, a handle beside or above it and a lid."""
    radius, height = r(0.35, 0.5), r(0.45, 0.8)
    profile = wall(r, 0.6 * radius, 0.5 * radius, height, 0.5 * radius)
    start, tip = (-0.8 * radius, 0.3 * height, 0), (-radius - r(0.2, 0.5), r(0.7, 1.0) * height, 0)
    parts = [revolved(profile), rod(start, tip, r(0.06, 0.1), r(0.03, 0.05)),
             revolved([(0.5 * radius, height), (0, height + 0.1)]),
             ball((0.05, 0.05, 0.05), (0, height + 0.12, 0))]  # fmt: skip
    if r.yes(0.65):
        return [*parts, handle(r, profile, 0.25 * height, 0.8 * height)]
    return [*parts, tube(arc((0, 0.7 * height, 0), (0.9 * radius, r(0.5, 0.8)), 0, 180), 0.03)]


def grip(r: Draw, length: float, thick: float) -> np.ndarray:
    """Draw an upright shaft from the origin: round, flat or tapered."""
    if r.yes(0.25):
        return box((2 * thick, length, thick))
    return rod((0, 0, 0), (0, length, 0), thick * r(0.8, 1.2), thick * r(0.6, 1.1))


def laid(r: Draw, parts: Parts) -> Parts:
    """Lay a tool flat, lean it or leave it upright."""
    style = r.whole(0, 2)
    return parts if style == 0 else [turned(turned(part, 90, "x"), 90 * (style - 1), "z") for part in parts]


def hammer(r: Draw) -> Parts:
    """Draw a shaft with a head across it: a block, a cylinder, a claw or a point."""
    length, thick, reach = r(0.7, 1.3), r(0.025, 0.05), r(0.12, 0.28)
    parts = [grip(r, length, thick)]
    face = r(0.04, 0.1)
    if r.yes(0.4):
        parts.append(box((2 * reach, 2 * face, 1.6 * face), (0, length - face, 0)))
    else:
        parts.append(rod((-reach, length, 0), (0.6 * reach, length, 0), face))
        if r.yes(0.6):
            claw = arc((0.6 * reach, length - 0.12, 0), (reach, 0.12), 90, 20)
            parts += [tube(claw + (0, 0, side), np.linspace(0.5 * face, 0.1 * face, 12)) for side in (-0.03, 0.03)]
    return laid(r, parts)


def axe(r: Draw) -> Parts:
    """Draw a shaft with a flat blade along it, on one side or on both."""
    length, thick, reach = r(0.7, 1.3), r(0.025, 0.05), r(0.15, 0.35)
    edge, neck = r(0.1, 0.25), r(0.05, 0.09)
    blade = slab([(0, length - neck), (-reach, length - edge), (-1.1 * reach, length), (-reach, length + edge),
                  (0, length + neck)], r(0.02, 0.06))  # fmt: skip
    parts = [grip(r, length + 0.06, thick), blade]
    if r.yes(0.25):
        return laid(r, [*parts, turned(blade, 180)])
    return laid(r, [*parts, box((r(0.05, 0.12), 2 * neck, 0.08), (0.05, length - neck, 0))])


def shovel(r: Draw) -> Parts:
    """Draw a long shaft with a broad blade, pointed, square or scooped, some with a grip at the end."""
    length, thick, wide, rise = r(0.8, 1.5), r(0.018, 0.035), r(0.1, 0.2), r(0.25, 0.45)
    if r.yes():
        outline = [(-wide, 0), (wide, 0), (wide, -0.6 * rise), (0, -rise), (-wide, -0.6 * rise)]
    else:
        outline = [(-wide, 0), (wide, 0), (wide * r(0.8, 1.2), -rise), (-wide * r(0.8, 1.2), -rise)]
    parts = [grip(r, length, thick), turned(slab(outline, 0.02), r(-15, 15), "x")]
    if r.yes(0.5):
        parts.append(box((0.2, 0.04, 0.04), (0, length, 0)))
    return laid(r, parts)


def rake(r: Draw) -> Parts:
    """Draw a long shaft with a bar of teeth, or with tines spread like a fan."""
    length, thick, wide = r(0.9, 1.6), r(0.015, 0.03), r(0.15, 0.32)
    count, rise = r.whole(5, 12), r(0.06, 0.16)
    parts = [grip(r, length, thick)]
    if r.yes(0.6):
        parts.append(box((2 * wide, 0.03, 0.04), (0, -0.03, 0)))
        parts += [rod((x, 0, 0), (x, -0.4 * rise, rise), 0.01) for x in np.linspace(-wide, wide, count)]
    else:
        parts += [rod((0, 0, 0), (x, -0.35, 0.1), 0.01) for x in np.linspace(-wide, wide, count)]
    return laid(r, parts)


def broom(r: Draw) -> Parts:
    """Draw a long shaft with a brush: a block of bristles, a flared bundle or a mop."""
    length, thick, wide, rise = r(0.8, 1.5), r(0.015, 0.03), r(0.12, 0.3), r(0.12, 0.4)
    parts = [grip(r, length, thick)]
    style = r.whole(0, 2)
    if style == 0:
        parts += [box((2 * wide, 0.05, 0.1)), wedge((2.2 * wide, 0.6 * rise, 0.14), (0.9, 0.6), (0, -0.6 * rise, 0))]
    elif style == 1:
        parts.append(revolved([(0.04, 0.05), (0.06, -0.1), (0.8 * wide, -0.3 - 0.5 * rise), (0, -0.3 - 0.5 * rise)],
                              squash=r(0.3, 1.0)))  # fmt: skip
    else:
        ends = wide * np.array([(np.cos(a), 0.6 * np.sin(a)) for a in np.linspace(0, 6, 9)])
        parts += [tube([(0, 0, 0), (0.6 * x, -0.05, 0.6 * z), (x, -0.8 * rise, z)], 0.02) for x, z in ends]
    return laid(r, parts)


def cutlery_shaft(r: Draw, length: float) -> np.ndarray:
    """Draw the flat handle of cutlery."""
    wide = r(0.03, 0.06)
    return slab([(-wide, 0), (wide, 0), (0.4 * wide, length), (-0.4 * wide, length)], r(0.015, 0.04))


def fork(r: Draw) -> Parts:
    """Cutlery with two to five tines; a pitchfork where the handle is long."""
    length, wide, count = r(0.6, 1.2), r(0.07, 0.14), r.whole(2, 5)
    tines, base = r(0.2, 0.4), r(0.05, 0.15)
    palm = slab([(-0.02, 0), (0.02, 0), (wide, base), (-wide, base)], 0.02) + (0, length, 0)
    bend = r(0, 0.1)
    parts = [tube([(x, length + base, 0), (x, length + base + tines / 2, -bend), (x, length + base + tines, 0)],
                  [0.014, 0.013, 0.006]) for x in np.linspace(-wide, wide, count)]  # fmt: skip
    return laid(r, [cutlery_shaft(r, length), palm, *parts])


def spoon(r: Draw) -> Parts:
    """Cutlery with an oval or round hollow; a ladle where it stands at an angle."""
    length, wide = r(0.6, 1.2), r(0.08, 0.18)
    high = wide * r(1.0, 1.8)
    hollow = turned(ball((wide, r(0.03, 0.12), high), start=-90, end=0), -90, "x")
    tilt = r(40, 90) if r.yes(0.25) else r(-15, 15)
    return laid(r, [cutlery_shaft(r, length), turned(hollow, tilt, "x") + (0, length + 0.8 * high, 0)])


VESSELS = (mug, bowl, vase, bottle, jug, pot, bucket, goblet, barrel, teapot)
TOOLS = (hammer, axe, shovel, rake, broom, fork, spoon)
