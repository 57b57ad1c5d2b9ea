"""The common corruptions of a split: fifteen kinds, five severities, the same for an image however it is read.

Results on splits corrupted here are labelled as regenerated: only the released JPEG tree is ImageNet-C and has an mCE.
What was corrupted once can be kept on disk, under a name that changes with the images, the corruption and this code.
"""

import os
import zlib
from pathlib import Path

import numpy as np
import torch

from everycause.artifacts import fingerprint
from everycause.data import corruptions as severities
from everycause.data import distortions
from everycause.data.distortions import DISTORTIONS
from everycause.data.split import Images, Split
from everycause.errors import UserError

# MERGED DOC: """How strong the common corruptions are: five severities each, for the image sizes at which they were published.
#
# A severity means the same loss of information at every size only with the constants of that size: those for 224 pixels make
# severity 1 at 64 pixels as strong as its severities 2 to 5. Constants: Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261,
# and their public code for ImageNet-C, Tiny-ImageNet-C and CIFAR-10-C (facts; no code taken).
# """


SIZES = (32, 64, 224)
NOISE, BLUR, WEATHER, DIGITAL = "noise", "blur", "weather", "digital"
GROUPS = {
    NOISE: ("gaussian_noise", "shot_noise", "impulse_noise"),
    BLUR: ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    WEATHER: ("snow", "frost", "fog", "brightness"),
    DIGITAL: ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""The benchmark's fifteen corruptions in their four groups."""

Levels = tuple[tuple[float, ...], ...]

SEVERITIES: dict[str, dict[int, Levels]] = {
    "gaussian_noise": {  # standard deviation
        32: ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
        64: ((0.04,), (0.08,), (0.12,), (0.15,), (0.18,)),
        224: ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    },
    "shot_noise": {  # photons at full intensity
        32: ((500,), (250,), (100,), (75,), (50,)),
        64: ((250,), (100,), (50,), (30,), (15,)),
        224: ((60,), (25,), (12,), (5,), (3,)),
    },
    "impulse_noise": {  # share of the values that become 0 or 1
        32: ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        64: ((0.01,), (0.02,), (0.05,), (0.08,), (0.14,)),
        224: ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    },
    "defocus_blur": {  # radius of the disk, deviation of its edge
        32: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        64: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        224: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    },
    "glass_blur": {  # deviation of the blur, reach of the displacements, passes
        32: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        64: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        224: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    },
    "motion_blur": {  # radius, deviation
        32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    },
    "zoom_blur": {  # largest factor (exclusive), step
        32: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        64: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        224: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    },
    "snow": {  # mean and deviation of the flakes, zoom, threshold, radius and deviation of their motion, share of the image that stays
        32: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        64: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8), (0.1, 0.2, 1, 0.5, 10, 4, 0.8), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        224: (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    },
    "frost": {  # weight of the image, weight of the frost
        32: ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        64: ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        224: ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    },
    "fog": {  # strength, decay of the fractal
        32: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        64: ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        224: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    },
    "brightness": {  # added to the value of HSV
        32: ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
        64: ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
        224: ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    },
    "contrast": {  # factor on the distance from the mean
        32: ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
        64: ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        224: ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    },
    "elastic_transform": {  # size, smoothness and affine part of the displacements, as shares of the side
        32: ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        64: ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
        224: tuple((244 / 224 * a, 244 / 224 * s, 244 / 224 * m) for a, s, m in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))),
    },
    "pixelate": {  # share of the side that is left
        32: ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
        64: ((0.9,), (0.8,), (0.7,), (0.6,), (0.5,)),
        224: ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    },
    "jpeg_compression": {  # quality
        32: ((80,), (65,), (58,), (50,), (40,)),
        64: ((65,), (58,), (50,), (40,), (25,)),
        224: ((25,), (18,), (15,), (10,), (7,)),
    },
}  # fmt: skip
"""Corruption → size → the constants of severities 1 to 5."""


def table_of(side: int) -> int:
    """The published size whose constants an image of this side gets: the nearest by ratio."""
    return min(SIZES, key=lambda size: max(size, side) / min(size, side))


CHUNK = 64
"""Images corrupted at once."""


def corrupted(split: Split, name: str, severity: int, cache: Path | None = None) -> Split:
    """The split with one corruption applied to every image; with a cache it is corrupted once, else each time it is read.

    Raises:
        UserError: there is no such corruption or severity.
    """
    check(name, severity)
    key = zlib.crc32(f"{name} {severity}".encode())
    level, distort = SEVERITIES[name][table_of(split.image_size)][severity - 1], DISTORTIONS[name]

    def read(index: np.ndarray) -> Images:
        parts = []
        for start in range(0, len(index), CHUNK):
            rows = index[start : start + CHUNK]
            generators = [
                np.random.Generator(np.random.Philox(key=np.array([key, int(i)], dtype=np.uint64))) for i in rows
            ]
            changed = distort(split.read(rows).float() / 255, level, generators)
            parts.append((changed.clamp(0, 1) * 255).round().to(torch.uint8))
        return torch.cat(parts)

    view = f"corruptions/{name}/{severity}"
    identity = fingerprint(split.identity, view)
    streamed = Split(view, split.labels, split.class_names, split.image_size, read, identity)
    return streamed if cache is None else kept_on_disk(streamed, cache)


def kept_on_disk(split: Split, cache: Path) -> Split:
    """The same split, read once and then from a file of the cache; written beside and renamed, so several processes may do it at once."""
    code = fingerprint(*(Path(module.__file__ or "") for module in (distortions, severities)), Path(__file__))
    file = cache / f"{fingerprint(split.identity, code)}.npy"

    def read(index: np.ndarray) -> Images:
        if not file.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}.partial")
            held = np.lib.format.open_memmap(
                partial, mode="w+", dtype=np.uint8, shape=(len(split), 3, split.image_size, split.image_size)
            )
            for start in range(0, len(split), 8 * CHUNK):
                rows = np.arange(start, min(start + 8 * CHUNK, len(split)))
                held[rows] = split.read(rows).numpy()
            held.flush()
            partial.rename(file)
        return torch.from_numpy(np.load(file, mmap_mode="r")[np.asarray(index)])

    return Split(split.name, split.labels, split.class_names, split.image_size, read, split.identity)


def group_of(name: str) -> str:
    """noise, blur, weather or digital."""
    return next(group for group, members in GROUPS.items() if name in members)


def check(name: str, severity: int) -> None:
    """Raises ValueError for an unknown corruption or severity."""
    if name not in DISTORTIONS:
        raise UserError(f"'{name}' is not a corruption (known: {', '.join(DISTORTIONS)})")
    if not 1 <= severity <= 5:
        raise UserError(f"severity {severity} does not exist: severities are 1 to 5")
