"""Splits: labelled images that can be read in any order, their statistics and their batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from everycause.artifacts import fingerprint
from everycause.data.images import Framing, Images, Statistics
from everycause.errors import UserError
from everycause.params import Section
from everycause.shapes import Int64


class PhotographParams(Section):
    """What every reader of photographs is told."""

    image_size: int = Field(ge=8, le=1024)
    """Side of the square images, in pixels."""
    _framing: Framing | None = PrivateAttr(None)

    @property
    def framing(self) -> Framing | None:
        """How the network that will see the photographs wants them cut to squares; never said in params.yaml."""
        return self._framing

    def framed(self, framing: Framing | None) -> "PhotographParams":
        """The same photographs for a network that wants them so."""
        changed = self.model_copy()
        changed._framing = framing
        return changed

    def described(self) -> str:
        """Everything that the pixels of a photograph depend on, for identities."""
        return f"{self.model_dump_json()} {self._framing}"


@dataclass(frozen=True)
class Split:
    """Labelled images of one size.

    Raises:
        UserError: there are no images.
    """

    name: str
    """Name of the split, for messages and records; of a shifted one, family or family/member."""
    labels: Int64[Tensor, "images"]
    """The class of each image, an index into class_names."""
    class_names: tuple[str, ...]
    """The classes, in the order of the logits."""
    image_size: int
    """Side of the square images, in pixels."""
    read: Callable[[np.ndarray], Images]
    """The images of some indices; they do not depend on the order or on what is read together."""
    identity: str
    """A hash that changes when any image, label or class name does, or the code that makes the images."""

    def __post_init__(self) -> None:
        if len(self.labels) == 0:
            raise UserError(f"the split '{self.name}' has no images")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def all(self) -> Images:
        """Every image, in order."""
        return self.read(np.arange(len(self)))

    def kept_in_memory(self, limit_mib: int) -> "Split":
        """The same split, read now and kept, if its images fit into `limit_mib` MiB; otherwise the split itself."""
        if len(self) * 3 * self.image_size**2 > limit_mib * 2**20:
            return self
        held = self.all()
        return replace(self, read=lambda index: held.index_select(0, torch.as_tensor(index)))

    def subset(self, index: np.ndarray) -> "Split":
        """Some of the images, renumbered, with an identity of their own."""
        index = np.asarray(index)
        return replace(
            self,
            labels=self.labels[torch.as_tensor(index)],
            read=lambda rows: self.read(index[rows]),
            identity=fingerprint(self.identity, "subset", index.astype(np.int64).tobytes()),
        )


class View(NamedTuple):
    """A split to evaluate on, and what else is known of its images."""

    split: Split
    factors: Any = None
    """codebirds.factors.Factors of rendered images; None for others."""
    groups: Int64[Tensor, "images"] | None = None
    """The group of each image, where the data set names groups."""
    among: Int64[Tensor, "answers"] | None = None
    """The classes among which the answer is sought; None for all."""
    compared: Int64[Tensor, "answers"] | None = None
    """Classes among which the answer is sought a second time, for comparison with a view that knows these alone."""
    released: bool = False
    """Whether these are published corrupted images rather than images corrupted here."""

    @property
    def name(self) -> str:
        """family, or family/member."""
        return self.split.name


class Batch(NamedTuple):
    """Some images of a split."""

    index: Int64[Tensor, "batch"]
    images: Images
    labels: Int64[Tensor, "batch"]


def statistics(split: Split, chunk: int = 512) -> Statistics:
    """Channel statistics of a split, from sums of integers: they are exact, whatever the chunk."""
    total, squares, count = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 0
    for batch in batches(split, chunk):
        values = batch.images.to(torch.int64)
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
        count += values.numel() // 3
    mean = total.double() / count
    deviation = (squares.double() / count - mean.square()).clamp_min(1.0).sqrt()
    return Statistics(tuple((mean / 255).tolist()), tuple((deviation / 255).tolist()))


def parts(count: int, size: int) -> list[Int64[np.ndarray, "rows"]]:
    """The numbers 0 to count − 1, `size` at a time."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


def batches(split: Split, size: int, order: np.ndarray | None = None) -> Iterator[Batch]:
    """The split in batches, in the order of its indices or in the given one."""
    order = np.arange(len(split)) if order is None else order
    for start in range(0, len(order), size):
        index = order[start : start + size]
        rows = torch.as_tensor(index)
        yield Batch(rows, split.read(index), split.labels[rows])
