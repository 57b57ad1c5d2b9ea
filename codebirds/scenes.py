"""Scenes behind the birds: 1/f noise in two colors, which are the palette of the scene's kind.

The kind of a scene is what follows the class in training. The noise comes from a bank of fields that belongs to one
split, so that no field of the training images is ever seen in a test image.
"""

from functools import lru_cache

import numpy as np

from codebirds.shapes import Float, Float32, Int

BANK_SIZE = 48
"""Noise fields per split."""


def random_words(key: tuple[int, int], count: int) -> np.ndarray:
    """`count` 64-bit words of the counter-based generator Philox for this key, the same on every machine."""
    return np.random.Philox(key=np.array(key, dtype=np.uint64)).random_raw(count)


def uniforms(words: np.ndarray) -> Float[np.ndarray, "..."]:
    """64-bit words as numbers in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


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
