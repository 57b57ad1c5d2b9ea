"""Painting of Codebirds: scenes, poses, parts as layers of signed distances, and the styles of renditions.

A bird is a list of layers painted from back to front. A layer covers a pixel by its signed distance clipped to one
pixel's width, which is exact antialiasing for straight edges. Outlined styles first paint the layer grown by the line
width in the line color, so that hidden lines are covered. All arrays are float32 and all operations are exact in IEEE
arithmetic (no sine, no matrix product), so that every machine gives the same bytes.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from codebirds.factors import Design, Factors, random_words, uniforms
from codebirds.glyphs import CUES, Plane, disc
from codebirds.shapes import Bool, Float, Float32, Int, UInt8

BANK_SIZE = 48
"""Noise fields per split."""


def hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> Float32[np.ndarray, "... 3"]:
    """Colors from hue (any real, 1 is a full turn), saturation and value in [0, 1]."""
    wheel = (np.asarray(hue)[..., None] + np.array([0.0, 2 / 3, 1 / 3])) % 1.0
    ramp = np.clip(np.abs(wheel * 6 - 3) - 1, 0, 1)
    value, saturation = np.asarray(value)[..., None], np.asarray(saturation)[..., None]
    return (value * (1 - saturation * (1 - ramp))).astype(np.float32)


@lru_cache(maxsize=8)
def noise_bank(key: int, size: int) -> Float32[np.ndarray, "bank side side"]:
    """1/f fields with values in [0, 1] and a side of 1.5 times the image's, so that crops of a field differ."""
    side = size + size // 2
    fields = np.zeros((BANK_SIZE, side, side), dtype=np.float32)
    for octave, cells in enumerate((2, 4, 8, 16, 32)):
        words = random_words((key, octave), BANK_SIZE * (cells + 1) ** 2)
        grid = uniforms(words).astype(np.float32).reshape(BANK_SIZE, cells + 1, cells + 1)
        fields += (_enlarge(grid, side) - np.float32(0.5)) * np.float32(0.5**octave * 1.1)
    return np.clip(fields + np.float32(0.5), 0, 1)


def _enlarge(grid: np.ndarray, side: int) -> np.ndarray:
    """Bilinear enlargement by elementwise operations, whose bytes, unlike a matrix product's, are always the same."""
    position = np.arange(side, dtype=np.float32) * np.float32((grid.shape[1] - 1) / side)
    low = position.astype(int)
    weight = (position - low).astype(np.float32)
    rows = grid[:, low] + (grid[:, low + 1] - grid[:, low]) * weight[:, None]
    return rows[:, :, low] + (rows[:, :, low + 1] - rows[:, :, low]) * weight


def palette(
    kind: Int[np.ndarray, "batch"], kinds: int, draws: Float[np.ndarray, "batch 3"], saturation: float
) -> Float32[np.ndarray, "batch 2 3"]:
    """The two colors of a scene kind, jittered by three draws in [0, 1)."""
    turn = (kind * 7 % kinds) / kinds
    jitter = (draws - 0.5) * np.array([0.05, 0.12, 0.12])
    first = hsv_to_rgb(turn + jitter[:, 0], saturation + jitter[:, 1], 0.62 + jitter[:, 2])
    second = hsv_to_rgb(
        turn + 0.12 + 0.3 * (kind % 3) / 3 + jitter[:, 0], saturation + jitter[:, 2], 0.42 + jitter[:, 1]
    )
    return np.stack([first, second], axis=1)


def scene(
    bank: np.ndarray, colors: Float32[np.ndarray, "batch 2 3"], draws: Float[np.ndarray, "batch 6"], size: int
) -> Float32[np.ndarray, "batch 3 size size"]:
    """Scenes of `size` pixels: one field mixes the two colors, another one adds grain."""
    which = (draws[:, :2] * len(bank)).astype(int)
    corner = (draws[:, 2:6] * (bank.shape[1] - size)).astype(int).reshape(-1, 2, 2)
    mixing = np.stack(
        [bank[w[0], c[0, 0] : c[0, 0] + size, c[0, 1] : c[0, 1] + size] for w, c in zip(which, corner, strict=True)]
    )
    grain = np.stack(
        [bank[w[1], c[1, 0] : c[1, 0] + size, c[1, 1] : c[1, 1] + size] for w, c in zip(which, corner, strict=True)]
    )
    first, second = (colors[:, i, :, None, None] for i in (0, 1))
    image = first + (second - first) * mixing[:, None]
    return image + ((grain - np.float32(0.5)) * np.float32(0.35))[:, None]


STYLES = ("photo", "cartoon", "poster", "mosaic", "negative", "embroidery", "hue_shift", "sketch")
RENDITIONS = tuple(range(1, 7))
"""The styles of the `renditions` split."""
OUTLINED = (STYLES.index("cartoon"), STYLES.index("sketch"))
SKETCH = STYLES.index("sketch")

ANCHORS = (
    (0.33, -0.47, 0.0, -1.0),
    (-0.02, 0.02, 1.0, 0.0),
    (-0.56, -0.06, -1.0, 0.0),
    (0.57, -0.25, 1.0, 0.0),
    (0.0, 0.46, 0.0, 1.0),
)
"""Center (two numbers) and outward direction (two) of crest, wing, tail, beak and feet, x ahead and y down."""
BEHIND, BEFORE = (2, 4), (3, 0, 1)
"""Places that are painted before and after the body and the head, each from back to front."""

FAR = np.float32(1e6)
"""Distance of what is absent, in pixels."""

Color = Float32[np.ndarray, "batch 3"]
Canvas = Float32[np.ndarray, "batch 3 height width"]


class Layer(NamedTuple):
    """One shape of a bird, for each image of a batch."""

    distance: Plane
    """Signed distance to the outline, in pixels, negative inside."""
    color: Color
    second: Color | None = None
    """The other color of a texture; None where the shape has one color."""
    texture: Plane | None = None
    """Share of the second color, 0 to 1."""
    part: int = -1
    """Index of the informative part that this is, or −1."""


def paint(birds: Design, factors: Factors) -> UInt8[np.ndarray, "batch 3 height width"]:
    """The images of some factors."""
    canvas = _scene(birds, factors)
    light, rim = factors.draw("light").T
    light = (0.85 + 0.3 * light[:, None]).astype(np.float32)
    line = np.where(np.isin(factors.style, OUTLINED), 0.95, birds.settings.rim_darkness * rim).astype(np.float32)
    sketched = factors.style == SKETCH
    canvas[sketched] = np.float32(0.95)
    for layer in _layers(birds, factors):
        _cover(canvas, layer, light, line, sketched)
    _stylize(canvas, factors.style)
    side = canvas.shape[-1]
    canvas += _pixel_noise(birds, factors, side)
    return (np.clip(canvas, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def part_masks(birds: Design, factors: Factors) -> Bool[np.ndarray, "batch parts height width"]:
    """The pixels of each part that no later layer covers."""
    side = birds.settings.image_size
    masks = np.zeros((len(factors.index), birds.code.length, side, side), dtype=bool)
    for layer in _layers(birds, factors):
        covered = layer.distance < 0
        masks &= ~covered[:, None]
        if layer.part >= 0:
            masks[:, layer.part] = covered
    return masks


def _scene(birds: Design, factors: Factors) -> Canvas:
    """The scenes behind the birds."""
    side = birds.settings.image_size
    colors = palette(
        np.maximum(factors.scene, 0), birds.num_classes, factors.draw("palette"), birds.settings.scene_saturation
    )
    canvas = scene(noise_bank(birds.key(factors.split + " scenes"), side), colors, factors.draw("scene"), side)
    canvas[factors.scene < 0] = np.float32(0.5)
    return canvas


def _pixel_noise(birds: Design, factors: Factors, side: int) -> Canvas:
    """Uniform noise from the image's own generator (another counter range than its draws)."""
    key = birds.key(factors.split + " noise")
    count = 3 * side * side
    words = np.stack([random_words((key, int(i)), -(-count // 8)) for i in factors.index])
    levels = words.view(np.uint8)[:, :count].reshape(-1, 3, side, side)
    scale = np.float32(2 * birds.settings.pixel_noise / 255)
    return (levels.astype(np.float32) - np.float32(127.5)) * scale


def _bird_frame(birds: Design, factors: Factors) -> tuple[Plane, Plane, np.ndarray]:
    """Every pixel in the bird's coordinates, and the pixels per unit of them."""
    side = birds.settings.image_size
    turn, size, right, down, mirror = factors.draw("pose").T
    half_angle_tangent = (turn - 0.5) * 2 * 0.17633  # tan 10°: a rotation within ±20°, from arithmetic alone
    cosine = (1 - half_angle_tangent**2) / (1 + half_angle_tangent**2)
    sine = 2 * half_angle_tangent / (1 + half_angle_tangent**2)
    scale = 0.84 + 0.28 * size
    facing = np.where(mirror < 0.5, 1.0, -1.0)
    grid = ((np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / side) - np.float32(1)).astype(
        np.float32
    )
    columns = (grid[None] - ((right - 0.5) * 0.28)[:, None].astype(np.float32))[:, None, :]
    rows = (grid[None] - ((down - 0.5) * 0.28)[:, None].astype(np.float32))[:, :, None]
    cosine, sine, facing = (
        (value / scale).astype(np.float32)[:, None, None] for value in (cosine, sine, facing * scale)
    )
    ahead = (columns * cosine + rows * sine) * facing
    below = rows * cosine - columns * sine
    return ahead, below, (side / 2 * scale).astype(np.float32)[:, None, None]


def _layers(birds: Design, factors: Factors) -> Iterator[Layer]:
    """The bird (and the distractor) from back to front; absent things have an infinite distance."""
    ahead, below, unit = _bird_frame(birds, factors)
    absent = ~factors.bird[:, None, None]
    if birds.settings.distractor:
        yield _distractor(birds, factors)
    hue, saturation, value = factors.draw("body").T
    body = hsv_to_rgb(hue, 0.12 + 0.2 * saturation, 0.5 + 0.3 * value)
    places = {place: part for part, place in enumerate(birds.places)}
    frame = (ahead, below, unit)
    yield from (_part(birds, factors, places[place], frame) for place in BEHIND if place in places)
    trunk = disc(ahead * np.float32(1 / 1.35), below * np.float32(1 / 0.95), 0.345) * unit
    head = disc(ahead - np.float32(0.36), below + np.float32(0.25), 0.19) * unit
    yield Layer(np.where(absent, FAR, np.minimum(trunk, head)), body)
    eye = disc(ahead - np.float32(0.42), below + np.float32(0.28), 0.035) * unit
    yield Layer(np.where(absent, FAR, eye), np.full_like(body, 0.05))
    yield from (_part(birds, factors, places[place], frame) for place in BEFORE if place in places)


def _part(birds: Design, factors: Factors, part: int, frame: tuple[Plane, Plane, np.ndarray]) -> Layer:
    """The layer of one informative part, each image with its own variant."""
    cue, (ahead, below, unit) = CUES[part], frame
    column, row, out_column, out_row = ANCHORS[birds.places[part]]
    radius = cue.radius * birds.settings.part_scale * (0.9 + 0.2 * factors.draw("part_size")[:, part])
    offset = (factors.draw("part_place")[:, 2 * part : 2 * part + 2] - 0.5) * 0.06
    lean = (factors.draw("part_turn")[:, part] - 0.5) * 0.3  # the tangent of the part's own turn, within ±8.5°
    turned = np.array([out_column - lean * out_row, out_row + lean * out_column]) / radius / np.sqrt(1 + lean**2)
    along, across = (value.astype(np.float32)[:, None, None] for value in turned)
    right = ahead - (column + offset[:, 0]).astype(np.float32)[:, None, None]
    down = below - (row + offset[:, 1]).astype(np.float32)[:, None, None]
    x, y = right * along + down * across, down * along - right * across
    distance = np.empty_like(x)
    texture = np.empty_like(x) if cue.textures else None
    variants = factors.variants[:, part]
    for variant in np.unique(variants):
        rows = variants == variant
        distance[rows] = cue.outlines[variant % len(cue.outlines)](x[rows], y[rows])
        if texture is not None:
            texture[rows] = cue.textures[variant](x[rows], y[rows])
    distance *= unit * radius.astype(np.float32)[:, None, None]
    distance[~(factors.present[:, part] & factors.bird)] = FAR
    color, second = _part_colors(birds, factors, part)
    return Layer(distance, color, second if cue.textures else None, texture, part)


def _part_colors(birds: Design, factors: Factors, part: int) -> tuple[Color, Color]:
    """First and second color of a part: they depend on the variant for the hue cue of photos alone."""
    tone = factors.draw("part_tone")[:, 2 * part : 2 * part + 2]
    free = factors.draw("part_hue")[:, part]
    if CUES[part].hue:
        symbol = (factors.variants[:, part] + (free - 0.5) * birds.settings.hue_jitter) / birds.code.order
        hue = np.where(factors.style == 0, symbol, factors.draw("free_hue")[:, part])
        return hsv_to_rgb(
            hue, birds.settings.hue_saturation * (0.8 + 0.2 * tone[:, 0]), 0.75 + 0.25 * tone[:, 1]
        ), np.zeros((len(hue), 3), dtype=np.float32)
    light = tone[:, 0] < 0.5
    value = np.where(light, 0.8 + 0.2 * tone[:, 1], 0.08 + 0.2 * tone[:, 1])
    contrast = np.float32(birds.settings.texture_contrast)
    color = hsv_to_rgb(free, 0.6 * tone[:, 1], value)
    other = hsv_to_rgb(free, 0.6 * tone[:, 1], np.where(light, 0.2, 0.85))
    return color, color + (other - color) * contrast


def _distractor(birds: Design, factors: Factors) -> Layer:
    """A small disc or square in a corner, whose color and form show its kind."""
    follows, kind, column, row, size, _ = factors.draw("object").T
    kinds = np.where(
        follows < birds.settings.distractor_correlation, factors.label, (kind * birds.num_classes).astype(int)
    )
    side = birds.settings.image_size
    grid = ((np.arange(side) + 0.5) * (2 / side) - 1).astype(np.float32)
    center = [np.where(draw < 0.5, -0.82 + 0.2 * draw, 0.62 + 0.2 * draw).astype(np.float32) for draw in (column, row)]
    x, y = grid[None, None] - center[0][:, None, None], grid[None, :, None] - center[1][:, None, None]
    radius = (0.09 + 0.04 * size).astype(np.float32)[:, None, None]
    distance = (
        np.where((kinds % 2 == 0)[:, None, None], np.sqrt(x * x + y * y), np.maximum(np.abs(x), np.abs(y))) - radius
    )
    return Layer(
        distance * np.float32(side / 2),
        hsv_to_rgb(kinds / birds.num_classes, np.full(len(kinds), 0.8), np.full(len(kinds), 0.9)),
    )


def _cover(canvas: Canvas, layer: Layer, light: np.ndarray, line: np.ndarray, sketched: np.ndarray) -> None:
    """Paint a layer over the canvas, in place."""
    rim = np.clip(np.float32(1.5) - layer.distance, 0, 1) * line[:, None, None]
    canvas *= (np.float32(1) - rim)[:, None]
    cover = np.clip(np.float32(0.5) - layer.distance, 0, 1)[:, None]
    paper = sketched[:, None]
    color = np.where(paper, np.float32(0.95), layer.color * light)[:, :, None, None]
    if layer.texture is not None and layer.second is not None:
        second = np.where(paper, np.float32(0.1), layer.second * light)[:, :, None, None]
        color = color + (second - color) * layer.texture[:, None]
    canvas += cover * (color - canvas)


def _stylize(canvas: Canvas, style: np.ndarray) -> None:
    """Apply the styles that work on the finished picture, in place."""
    for number in np.unique(style):
        rows = style == number
        if change := EFFECTS.get(STYLES[number]):
            canvas[rows] = change(canvas[rows])


def _levels(image: Canvas, count: int) -> Canvas:
    """The image with `count` levels per channel."""
    return np.floor(np.clip(image, 0, 0.999) * np.float32(count)) / np.float32(count - 1)


def _mosaic(image: Canvas) -> Canvas:
    """The image in square tiles of one color."""
    side = image.shape[-1]
    tile = max(2, side // 24)
    centers = np.minimum(np.arange(side) // tile * tile + tile // 2, side - 1)
    blurred = (image + np.roll(image, 1, -1) + np.roll(image, 1, -2) + np.roll(image, (1, 1), (-1, -2))) * np.float32(
        0.25
    )
    return blurred[:, :, centers][:, :, :, centers]


def _embroidery(image: Canvas) -> Canvas:
    """The image in six levels under diagonal threads."""
    side = image.shape[-1]
    row, column = np.arange(side)[:, None], np.arange(side)[None]
    thread = np.where((row + column) // max(1, side // 64) % 3 == 0, np.float32(0.6), np.float32(1.1))
    return _levels(image, 6) * thread


EFFECTS = {
    "cartoon": lambda image: _levels(image, 5),
    "poster": lambda image: _levels((image - np.float32(0.5)) * np.float32(1.5) + np.float32(0.5), 3),
    "mosaic": _mosaic,
    "negative": lambda image: np.float32(1) - image,
    "embroidery": _embroidery,
    "hue_shift": lambda image: image[:, [2, 0, 1]],
}
"""Style → change of the finished picture."""
