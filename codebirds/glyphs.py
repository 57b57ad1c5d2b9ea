"""The five cues of a bird and their variants, as signed distances.

A variant is a function of a part's own coordinates, x outwards and y across, in units of the part's radius. It returns
the signed distance to an outline, negative inside, or the share of a texture's second color. Only operations that are
exact in IEEE arithmetic (+ − × ÷ √ min max) are used, so that the same seed gives the same bytes on every machine.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from codebirds.shapes import Float32

Plane = Float32[np.ndarray, "batch height width"]
Glyph = Callable[[Plane, Plane], Plane]


def disc(x: Plane, y: Plane, radius: float = 1.0) -> Plane:
    """A circle about the origin."""
    return np.sqrt(x * x + y * y) - np.float32(radius)


def box(x: Plane, y: Plane, half_width: float, half_height: float) -> Plane:
    """An upright rectangle about the origin; the distance is the larger one of the two coordinates."""
    return np.maximum(np.abs(x) - np.float32(half_width), np.abs(y) - np.float32(half_height))


def diamond(x: Plane, y: Plane) -> Plane:
    """A square standing on its corner."""
    return (np.abs(x) + np.abs(y) - np.float32(1.1)) * np.float32(0.7071)


def cross(x: Plane, y: Plane) -> Plane:
    """A plus sign."""
    return np.minimum(box(x, y, 1.05, 0.34), box(x, y, 0.34, 1.05))


def crescent(x: Plane, y: Plane) -> Plane:
    """A moon that opens outwards."""
    return np.maximum(disc(x, y), -disc(x - np.float32(0.62), y, 0.78))


def fork(x: Plane, y: Plane) -> Plane:
    """Two parallel bars that point outwards."""
    return box(x, np.abs(y) - np.float32(0.62), 1.15, 0.26)


def wedge(x: Plane, y: Plane) -> Plane:
    """A triangle that points outwards."""
    return np.maximum(-x - np.float32(0.8), np.float32(0.5) * x + np.float32(0.85) * np.abs(y) - np.float32(0.55))


def bar(x: Plane, y: Plane) -> Plane:
    """One long bar that points outwards."""
    return box(x - np.float32(0.35), y, 1.35, 0.3)


def hammer(x: Plane, y: Plane) -> Plane:
    """A bar across the outer end of a stem."""
    return np.minimum(box(x + np.float32(0.1), y, 0.8, 0.2), box(x - np.float32(0.75), y, 0.28, 1.1))


def row_of(count: int, mark: Glyph, spread: float) -> Glyph:
    """`count` copies of a mark side by side across the part."""
    offsets = (np.arange(count) - (count - 1) / 2) * spread

    def glyph(x: Plane, y: Plane) -> Plane:
        planes = (mark(x, y - np.float32(offset)) for offset in offsets)
        nearest = next(planes)
        for plane in planes:
            nearest = np.minimum(nearest, plane)
        return nearest

    return glyph


def leg(x: Plane, y: Plane) -> Plane:
    """A thin bar that points outwards."""
    return box(x, y, 0.95, 0.2)


def dot(x: Plane, y: Plane) -> Plane:
    """A small disc."""
    return disc(x, y, 0.46)


def stripes(phase: Plane) -> Plane:
    """Stripes of equal width across a coordinate, 0 to 1, with soft edges and a period of 1."""
    triangle = np.abs(phase - np.floor(phase) - np.float32(0.5))
    return np.clip((triangle - np.float32(0.25)) * np.float32(6.0) + np.float32(0.5), 0, 1)


def checks(x: Plane, y: Plane) -> Plane:
    """A checkerboard, 0 to 1."""
    first, second = stripes(x), stripes(y)
    return first + second - np.float32(2.0) * first * second


class Cue(NamedTuple):
    """One kind of cue, and the outline or texture of each of its variants."""

    name: str
    """Name for reports."""
    outlines: tuple[Glyph, ...]
    """The outline of each variant; a single one where the outline tells nothing."""
    radius: float
    """The part's radius, in half image widths."""
    textures: tuple[Glyph, ...] = ()
    """The texture of each variant, 0 to 1; empty where there is none."""
    hue: bool = False
    """Whether the variant decides the hue."""


PERIOD = np.float32(1.25)
"""Stripes of a texture per radius of its part."""
TEXTURES: tuple[Glyph, ...] = (
    lambda x, y: stripes(x * PERIOD),
    lambda x, y: stripes(y * PERIOD),
    lambda x, y: checks(x * PERIOD, y * PERIOD),
    lambda x, y: stripes(np.sqrt(x * x + y * y) * PERIOD + np.float32(0.25)),
    lambda x, y: stripes((x + y) * np.float32(0.9)),
)
"""Along, across, checks, rings, diagonal."""

CUES: tuple[Cue, ...] = (
    Cue("hue", (disc,), 0.13, hue=True),
    Cue("texture", (disc,), 0.25, textures=TEXTURES),
    Cue("large silhouette", (disc, fork, diamond, crescent, cross), 0.27),
    Cue("small silhouette", (wedge, bar, disc, hammer, fork), 0.185),
    Cue(
        "count and form",
        (
            row_of(2, leg, 0.9),
            row_of(2, dot, 1.15),
            row_of(3, leg, 0.75),
            row_of(1, lambda x, y: box(x, y, 0.42, 1.1), 0.0),
            row_of(4, leg, 0.6),
        ),
        0.2,
    ),
)
"""In the order of the code's symbols."""

MAX_VARIANTS = 5
"""Every cue has this many variants; a code of smaller order uses the first ones."""
