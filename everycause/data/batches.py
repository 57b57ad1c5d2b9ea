"""From stored images to what a network sees: normalization, geometric augmentation, batches."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from everycause.data.split import Images, Split


class Statistics(NamedTuple):
    """Channel means and standard deviations, 1 being white."""

    mean: tuple[float, float, float]
    standard_deviation: tuple[float, float, float]


class Batch(NamedTuple):
    """Some images of a split."""

    index: Int64[Tensor, "batch"]
    images: Images
    labels: Int64[Tensor, "batch"]


def statistics(split: Split, chunk: int = 512) -> Statistics:
    """Channel statistics of a split, from integer sums: exact, so independent of the chunking."""
    total, squares, count = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 0
    for batch in batches(split, chunk):
        values = batch.images.to(torch.int64)
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
        count += values.numel() // 3
    mean = total.double() / count
    deviation = (squares.double() / count - mean.square()).clamp_min(1.0).sqrt()
    return Statistics(tuple((mean / 255).tolist()), tuple((deviation / 255).tolist()))


def normalized(images: UInt8[Tensor, "batch 3 height width"], statistics: Statistics, device: torch.device) -> Float[Tensor, "batch 3 height width"]:
    """Zero mean and unit deviation per channel; 0 is the data set's mean color."""
    mean = torch.tensor(statistics.mean, device=device)[:, None, None] * 255
    scale = 1 / (torch.tensor(statistics.standard_deviation, device=device)[:, None, None] * 255)
    return ((images.to(device) - mean) * scale).contiguous(memory_format=torch.channels_last)


def batches(split: Split, size: int, order: np.ndarray | None = None) -> Iterator[Batch]:
    """The split in batches, in index order or in the given one."""
    order = np.arange(len(split)) if order is None else order
    for start in range(0, len(order), size):
        index = order[start : start + size]
        rows = torch.as_tensor(index)
        yield Batch(rows, split.read(index), split.labels[rows])


class Geometry(NamedTuple):
    """A mirror and a shift for each image of a batch."""

    mirror: Int64[Tensor, "batch"]
    """1 where the image is mirrored."""
    down: Int64[Tensor, "batch"]
    right: Int64[Tensor, "batch"]

    def rows(self, index: Int64[Tensor, "rows"]) -> "Geometry":
        """The same transformations for some of the images."""
        return Geometry(*(value[index] for value in self))


def draw_geometry(count: int, shift: int, generator: torch.Generator) -> Geometry:
    """Random mirrors (probability one half) and shifts of up to `shift` pixels."""
    mirror = torch.randint(0, 2, (count,), generator=generator)
    down, right = torch.randint(-shift, shift + 1, (2, count), generator=generator)
    return Geometry(mirror, down, right)


def transformed(images: UInt8[Tensor, "batch channels height width"], geometry: Geometry) -> UInt8[Tensor, "batch channels height width"]:
    """Mirrored and shifted images; what comes in at a border is its reflection."""
    _, _, height, width = images.shape
    rows = _reflected(torch.arange(height)[None] - geometry.down[:, None], height)
    columns = _reflected(torch.arange(width)[None] - geometry.right[:, None], width)
    columns = torch.where(geometry.mirror[:, None] == 1, width - 1 - columns, columns)
    batch = torch.arange(len(images))[:, None, None]
    return images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(position: Tensor, length: int) -> Tensor:
    """Positions folded back into 0 … length−1 at the borders."""
    position = position.abs()
    return torch.where(position >= length, 2 * (length - 1) - position, position)
