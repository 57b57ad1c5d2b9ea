"""A first set of common corruptions, five severities each, the same for an image however it is read.

The severities follow the 64-pixel table of the common-corruptions benchmark (specs/evaluation.md, from the public
code of arXiv 1903.12261). Results are labelled as regenerated: they are not ImageNet-C and have no mCE.
"""

import io
import zlib
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from everycause.artifact import fingerprint
from everycause.data.split import Images, Split

Corruption = Callable[[Images, float, list[np.random.Generator]], torch.Tensor]


def corrupted(split: Split, name: str, severity: int) -> Split:
    """The split with one corruption applied to every image.

    Raises:
        ValueError: there is no such corruption or severity.
    """
    check(name, severity)
    key = zlib.crc32(f"{name} {severity}".encode())

    def read(index: np.ndarray) -> Images:
        generators = [np.random.Generator(np.random.Philox(key=np.array([key, int(i)], dtype=np.uint64))) for i in index]
        apply, levels = CORRUPTIONS[name]
        changed = apply(split.read(index), levels[severity - 1], generators)
        return changed if changed.dtype == torch.uint8 else (changed.clamp(0, 1) * 255).round().to(torch.uint8)

    view = f"corruptions/{name}/{severity}"
    return Split(view, split.labels, split.class_names, split.image_size, read, fingerprint(split.identity, view))


def check(name: str, severity: int) -> None:
    """Raises ValueError for an unknown corruption or severity."""
    if name not in CORRUPTIONS:
        raise ValueError(f"'{name}' is not a corruption (known: {', '.join(CORRUPTIONS)})")
    if not 1 <= severity <= 5:
        raise ValueError(f"severity {severity} does not exist: severities are 1 to 5")


def _scaled(images: Images) -> torch.Tensor:
    return images.float() / 255


def _gaussian_noise(images: Images, deviation: float, generators: list[np.random.Generator]) -> torch.Tensor:
    noise = np.stack([generator.standard_normal(images.shape[1:], dtype=np.float32) for generator in generators])
    return _scaled(images) + deviation * torch.from_numpy(noise)


def _shot_noise(images: Images, photons: float, generators: list[np.random.Generator]) -> torch.Tensor:
    expected = (_scaled(images) * photons).numpy()
    counts = np.stack([generator.poisson(image) for image, generator in zip(expected, generators, strict=True)])
    return torch.from_numpy(counts.astype(np.float32)) / photons


def _gaussian_blur(images: Images, deviation: float, _generators: list[np.random.Generator]) -> torch.Tensor:
    size = 2 * int(np.ceil(3 * deviation)) + 1
    return functional.gaussian_blur(_scaled(images), [size, size], [deviation, deviation])


def _brightness(images: Images, added: float, _generators: list[np.random.Generator]) -> torch.Tensor:
    """Adds to the value of HSV, which scales all channels by the same factor (and keeps black black)."""
    scaled = _scaled(images)
    value = scaled.amax(dim=1, keepdim=True)
    return scaled * ((value + added).clamp_max(1) / value.clamp_min(1 / 255))


def _contrast(images: Images, factor: float, _generators: list[np.random.Generator]) -> torch.Tensor:
    scaled = _scaled(images)
    mean = scaled.mean(dim=(2, 3), keepdim=True)
    return (scaled - mean) * factor + mean


def _pixelate(images: Images, share: float, _generators: list[np.random.Generator]) -> torch.Tensor:
    side = images.shape[-1]
    small = int(side * share)
    pictures = (Image.fromarray(image).resize((small, small), Image.Resampling.BOX) for image in images.permute(0, 2, 3, 1).numpy())
    enlarged = [np.asarray(picture.resize((side, side), Image.Resampling.NEAREST)) for picture in pictures]
    return torch.from_numpy(np.stack(enlarged)).permute(0, 3, 1, 2)


def _jpeg(images: Images, quality: float, _generators: list[np.random.Generator]) -> torch.Tensor:
    decoded = []
    for image in images.permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=int(quality))
        decoded.append(np.asarray(Image.open(buffer)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.08, 0.12, 0.15, 0.18)),
    "shot_noise": (_shot_noise, (250, 100, 50, 30, 15)),
    "gaussian_blur": (_gaussian_blur, (0.5, 0.75, 1.0, 1.25, 1.5)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, (0.9, 0.8, 0.7, 0.6, 0.5)),
    "jpeg": (_jpeg, (65, 58, 50, 40, 25)),
}
"""Each corruption with its five severities."""
