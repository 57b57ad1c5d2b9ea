"""Counterfactual images that need no search: the augmentations that everybody knows, and the ceiling that only Codebirds can show."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.transforms import v2

from everycause.data.codebirds import Codebirds
from everycause.data.dataset import DataParams
from everycause.data.split import Images


@dataclass(frozen=True)
class Erasing:
    """A random rectangle of the image set to the data set's mean color (Zhong et al., AAAI 2020; torchvision's default sizes)."""

    mean: tuple[float, float, float]
    """Channel means, 1 being white."""
    rate: float

    def covers(self, _index: int) -> bool:
        """Every image can lose a rectangle."""
        return True

    def composed(self, _index: Tensor, images: Images, labels: Int64[Tensor, "batch"], generator: torch.Generator) -> tuple[Images, Tensor]:
        """Each image without a rectangle of its own."""
        erase = v2.RandomErasing(p=1.0, value=[round(255 * value) for value in self.mean])
        with seeded(generator):
            return (torch.stack([erase(image) for image in images]) if len(images) else images), labels


@dataclass(frozen=True)
class CutMix:
    """A rectangle of another image of the batch, and its share of the label (Yun et al., ICCV 2019)."""

    classes: int
    rate: float

    def covers(self, _index: int) -> bool:
        """Every image can be mixed."""
        return True

    def composed(
        self, _index: Tensor, images: Images, labels: Int64[Tensor, "batch"], generator: torch.Generator
    ) -> tuple[Images, Float[Tensor, "batch classes"]]:
        """Each image with a rectangle of its neighbor in the batch; the labels become probabilities."""
        if len(images) == 0:
            return images, torch.nn.functional.one_hot(labels, self.classes).float()
        with seeded(generator):
            return v2.CutMix(num_classes=self.classes)(images, labels)


@dataclass(frozen=True)
class OracleParts:
    """The truth instead of a search: the same bird rendered without some of its parts, in a scene that is independent of its class.

    How many parts go is uniform over 1 … the most that leave the class decidable, which parts is uniform too.
    """

    birds: Codebirds
    rate: float

    def covers(self, _index: int) -> bool:
        """Every bird can be rendered again."""
        return True

    def composed(self, index: Int64[Tensor, "batch"], images: Images, labels: Tensor, generator: torch.Generator) -> tuple[Images, Tensor]:
        """The same birds, as if they had been photographed elsewhere without some parts."""
        if len(index) == 0:
            return images, labels
        code = self.birds.code
        factors = self.birds.factors("train", index.numpy())
        count = torch.randint(1, code.length - code.dimension + 1, (len(index), 1), generator=generator)
        absent = torch.rand(len(index), code.length, generator=generator).argsort(dim=1) < count
        scene = torch.randint(self.birds.num_classes, (len(index),), generator=generator).numpy()
        changed = replace(factors, present=factors.present & ~absent.numpy(), scene=scene.astype(np.asarray(factors.scene).dtype))
        return torch.from_numpy(self.birds.images(changed)), labels


def oracle_parts(data: DataParams, threads: int, rate: float) -> OracleParts:
    """The oracle of the embedded data.

    Raises:
        ValueError: the data are photos, whose parts nobody knows.
    """
    if data.source != "codebirds":
        raise ValueError("the row 'oracle_parts' needs data whose parts are known (data.source: codebirds): leave it out of rows")
    return OracleParts(Codebirds(data.codebirds, threads), rate)


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """torch's global generator follows another one within the block and is restored after it: torchvision's transforms know no other."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
