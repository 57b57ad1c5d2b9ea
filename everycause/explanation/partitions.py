"""Partitions of many images: 16-bit region numbers, which stay in the files of a search until they are asked for.

Superpixels of an image of 224 pixels take 100 kB, those of all searched images of ImageNet more than any memory. A grid
is one partition for all images, and is held.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from everycause.errors import UserError
from everycause.shapes import Int64, Integer

FIELD = "partition"
"""Name of the tensor in a file of masks."""
AGAIN = "delete its folder and run the stage generate_masks again"


@dataclass(frozen=True)
class StoredPartitions:
    """One partition for each image, in files or tensors."""

    sources: tuple[Path | Tensor, ...]
    place: Int64[Tensor, "images 2"]
    """Number of the source, and row in it, of each image."""
    size: tuple[int, int]
    """Height and width."""
    regions: int
    """The most regions that an image has."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of images, height and width."""
        return (len(self.place), *self.size)

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, index: Any) -> "StoredPartitions":
        return replace(self, place=self.place[index])

    def read(self) -> Int64[Tensor, "images height width"]:
        """The region of each pixel of every image.

        Raises:
            UserError: a file is missing or damaged.
        """
        result = torch.empty(self.shape, dtype=torch.int64)
        for number in self.place[:, 0].unique().tolist():
            rows, source = (self.place[:, 0] == number).nonzero()[:, 0], self.sources[number]
            inside = self.place[rows, 1]
            result[rows] = source[inside].long() if isinstance(source, Tensor) else self._of_file(source, inside)
        return result

    def _of_file(self, file: Path, rows: Int64[Tensor, "rows"]) -> Int64[Tensor, "rows height width"]:
        try:
            with safe_open(file, framework="pt") as opened:
                stored = opened.get_slice(FIELD)
                found = torch.stack([stored[row] for row in rows.tolist()]).long()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is not a readable artifact ({error}): {AGAIN}") from error
        if found.max() >= self.regions:
            raise UserError(f"{file} is damaged (it names regions that do not exist): {AGAIN}")
        return found


Partitions = Integer[Tensor, "partitions height width"] | StoredPartitions
"""The region of each pixel: one partition for all images, or one for each."""


def numbers(partition: Partitions) -> Int64[Tensor, "partitions height width"]:
    """Partitions as indices; those that lie in files are read now."""
    return partition.read() if isinstance(partition, StoredPartitions) else partition.long()


def joined(parts: list[Any]) -> Any:
    """Tensors, or partitions of each image, one after the other."""
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat(parts)
    regions = max(part.regions for part in parts if isinstance(part, StoredPartitions))
    size, sources, places = tuple(parts[0].shape[1:]), [], []
    for part in parts:
        if isinstance(part, Tensor):
            places.append(torch.stack([torch.full((len(part),), len(sources)), torch.arange(len(part))], dim=1))
            sources.append(part)
        else:
            places.append(part.place + torch.tensor([len(sources), 0]))
            sources.extend(part.sources)
    return StoredPartitions(tuple(sources), torch.cat(places), size, regions)


def opened(file: Path, shared: bool, regions: int) -> Partitions | None:
    """The partitions in a file of masks: one for all images is read, one for each stays there; None for other files.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as content:
            if FIELD not in content.keys() or (stored := content.get_slice(FIELD)).get_dtype() != "U16":
                return None
            count, *size = stored.get_shape()
            if shared or len(size) != 2:
                return content.get_tensor(FIELD)
    except SafetensorError as error:
        raise UserError(f"{file} is not a readable artifact ({error}): {AGAIN}") from error
    place = torch.stack([torch.zeros(count, dtype=torch.int64), torch.arange(count)], dim=1)
    return StoredPartitions((file,), place, (size[0], size[1]), regions)
