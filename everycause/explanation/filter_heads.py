"""The trained affine maps of counterfactual explanation heads, in memory or in files (everycause.explanation.heads)."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from everycause.artifacts import load_tensors, save_tensors
from everycause.errors import UserError
from everycause.shapes import Bool, Float, Int64

FILE = "heads-{:05d}.safetensors"
"""A block of minimum-correct heads in the folder of its filter bank, by the number of its first head."""
INCORRECT = "incorrect_heads-{:05d}.safetensors"
"""The same of minimum-incorrect heads."""
MADE_BY = "accumulate_filters"
AGAIN = f"delete its folder and run the stage {MADE_BY} again"


class Heads(ABC):
    """Trained affine maps: one for each class, or a single one for all classes."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of maps."""

    @abstractmethod
    def one(self, number: int) -> tuple[Float[Tensor, "filters filters"], Float[Tensor, "filters"]]:
        """Weight and bias of one map."""

    def outputs(
        self, activations: Float[Tensor, "batch filters"], classes: Int64[Tensor, "batch"]
    ) -> Float[Tensor, "batch filters"]:
        """The map of each image's class, applied to its activations, before any gate."""
        result = torch.empty(activations.shape)
        heads = classes if self.count > 1 else torch.zeros_like(classes)
        # one weight at a time: weights gathered image by image would not fit into memory
        for head in heads.unique().tolist():
            rows = heads == head
            result[rows] = linear(activations[rows], *self.one(head))
        return result

    def minimum_correct(
        self, activations: Float[Tensor, "batch filters"], classes: Int64[Tensor, "batch"]
    ) -> Bool[Tensor, "batch filters"]:
        """The filters that each image needs in order to be the given class: gates above one half (MC heads)."""
        return self.outputs(activations, classes) > 0

    def minimum_incorrect(
        self, activations: Float[Tensor, "batch filters"], classes: Int64[Tensor, "batch"]
    ) -> Float[Tensor, "batch filters"]:
        """What each image's activations lack in order to be the given class, in units of activation (MI heads)."""
        return self.outputs(activations, classes).relu()


@dataclass(frozen=True)
class FilterHeads(Heads):
    """Maps that are held in memory."""

    weight: Float[Tensor, "heads filters filters"]
    bias: Float[Tensor, "heads filters"]

    @property
    def count(self) -> int:
        """Number of maps."""
        return len(self.weight)

    def one(self, number: int) -> tuple[Float[Tensor, "filters filters"], Float[Tensor, "filters"]]:
        """Weight and bias of one map."""
        return self.weight[number], self.bias[number]


@dataclass(frozen=True)
class StoredHeads(Heads):
    """Maps that lie in the files of a folder, in blocks, and are read one by one when they are asked for."""

    folder: Path
    file: str = FILE
    """Name of the files, with a place for the number of the first map of each."""

    @classmethod
    def written(cls, blocks: Iterable[FilterHeads], folder: Path, model: str, file: str = FILE) -> "StoredHeads":
        """Write blocks of heads of the model with this fingerprint, one after the other."""
        first = 0
        for block in blocks:
            tensors = {f"{first + number}/weight": one for number, one in enumerate(block.weight)}
            tensors |= {f"{first + number}/bias": one for number, one in enumerate(block.bias)}
            save_tensors(folder / file.format(first), tensors, {"model": model})
            first += block.count
        return cls(folder, file)

    @cached_property
    def _starts(self) -> list[int]:
        """The first map of each file."""
        begin, end = self.file.split("{:05d}")
        found = [path.name.removeprefix(begin).removesuffix(end) for path in self.folder.glob(f"{begin}*{end}")]
        return sorted(int(number) for number in found if number.isdigit()) or [0]

    @cached_property
    def count(self) -> int:
        """Number of maps."""
        names: list[str] = []
        load_tensors(self.folder / self.file.format(self._starts[-1]), MADE_BY, lambda name: bool(names.append(name)))
        return self._starts[-1] + sum(name.endswith("/bias") for name in names)

    def one(self, number: int) -> tuple[Float[Tensor, "filters filters"], Float[Tensor, "filters"]]:
        """Weight and bias of one map.

        Raises:
            UserError: the file is missing, or not readable.
        """
        file = self.folder / self.file.format(self._starts[bisect_right(self._starts, number) - 1])
        tensors, _ = load_tensors(file, MADE_BY, lambda name: name.startswith(f"{number}/"))
        if set(tensors) != {f"{number}/weight", f"{number}/bias"}:
            raise UserError(f"{file} is damaged (it lacks the head of class number {number}): {AGAIN}")
        return tensors[f"{number}/weight"], tensors[f"{number}/bias"]
