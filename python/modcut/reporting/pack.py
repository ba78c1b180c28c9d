"""Nested circles: every module a circle, every group the circle around its members."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Between circles there is room for the lines that connect them and for a line of text.
GAP = 30.0
# A pair of placed circles that are further apart than this cannot both touch a new one.
_NEAR = 96


def pack(radii: Sequence[float], gap: float = GAP) -> Floats:
    """Place circles side by side without overlap, the largest in the middle, each touching two that lie already.

    Args:
        radii: [n], positive.
        gap: least distance between two of them.

    Returns:
        float64 [n, 2] centres. O(n^4) for a few dozen circles; beyond 96 only the last 96 are touched.
    """
    n = len(radii)
    r = np.asarray(radii, dtype=np.float64) + gap / 2
    place = np.zeros((n, 2))
    order = sorted(range(n), key=lambda i: (-radii[i], i))
    for at, i in enumerate(order):
        if at == 0:
            continue
        done = np.array(order[:at])
        if at == 1:
            place[i] = place[order[0]] + [r[order[0]] + r[i], 0.0]
            continue
        spots = _touching(place[done[-_NEAR:]], r[done[-_NEAR:]], float(r[i]))
        distance = np.linalg.norm(spots[:, None] - place[done][None], axis=-1) - r[done][None] - r[i]
        free = spots[distance.min(1) > -1e-6]
        middle = np.average(place[done], axis=0, weights=r[done] ** 2)
        # A wide page: distance to the middle counts more downwards than sideways.
        place[i] = free[int(np.argmin(np.hypot(free[:, 0] - middle[0], 1.25 * (free[:, 1] - middle[1]))))]
    return place


def around(centres: Floats, radii: Sequence[float]) -> tuple[float, float, float]:
    """Return ``(x, y, radius)`` of a small circle around the circles (Badoiu and Clarkson 2003, within a percent)."""
    r = np.asarray(radii, dtype=np.float64)
    c = np.average(centres, axis=0, weights=r)
    for step in range(1, 200):
        away = np.linalg.norm(centres - c, axis=1) + r
        far = int(np.argmax(away))
        to = centres[far] - c
        length = float(np.linalg.norm(to)) or 1.0
        c = c + to / length * (away[far] - away.mean()) / (step + 1)
    return float(c[0]), float(c[1]), float((np.linalg.norm(centres - c, axis=1) + r).max())


def _touching(place: Floats, r: Floats, mine: float) -> Floats:
    """Centres of a circle of radius ``mine`` that touches two of the placed ones: both sides of every near pair."""
    found = []
    for a in range(len(r)):
        for b in range(a + 1, len(r)):
            d = float(math.dist(place[a], place[b]))
            ra, rb = r[a] + mine, r[b] + mine
            if d >= ra + rb or d <= abs(ra - rb) or d == 0.0:
                continue
            along = (ra * ra - rb * rb + d * d) / (2 * d)
            up = math.sqrt(max(ra * ra - along * along, 0.0))
            unit = (place[b] - place[a]) / d
            base = place[a] + unit * along
            normal = np.array([-unit[1], unit[0]])
            found += [base + normal * up, base - normal * up]
    return np.array(found)
