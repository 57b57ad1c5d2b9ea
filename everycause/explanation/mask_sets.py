"""The sets of regions that a search found for many images, and the files in which they are kept, one for each shard."""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from everycause.artifacts import load_explanation, load_tensors, save_tensors
from everycause.errors import UserError
from everycause.explanation.partitions import FIELD, Partitions, joined, numbers, opened
from everycause.explanation.regions import as_sets
from everycause.shapes import Bool, Float, Int64

FILE = "masks-{:05d}.safetensors"
WHOLE = ("shared", "selection_counts")
"""Fields of Masks that do not have a row for each image."""


@dataclass(frozen=True)
class Masks:
    """The set of each searched image, one row per image."""

    index: Int64[Tensor, "images"]
    """Index of the image in the split."""
    order: Int64[Tensor, "images steps"]
    """The regions in the order of their removal; −1 after the end."""
    flipped: Bool[Tensor, "images"]
    """Whether the removal changes the prediction."""
    runner_up: Int64[Tensor, "images"]
    """The second most probable class of the whole image, c."""
    before: Float[Tensor, "images 2"]
    """p(y) and p(c) of the whole image."""
    after: Float[Tensor, "images 2"]
    """p(y) and p(c) with the set removed."""
    effect: Float[Tensor, "images regions"]
    """|change of the log-odds of y| when the region alone is removed; to first order by the fast search."""
    areas: Float[Tensor, "images regions"]
    """Share of the image that each region covers; 0 for a number that the image does not use."""
    forwards: Int64[Tensor, "images"]
    """Forward passes spent."""
    partition: Partitions
    """The region of each pixel: one partition for all images, or one for each image."""
    shared: bool
    """Whether there is one partition for all images."""
    selection_counts: Int64[Tensor, "3"]
    """Images looked at, predicted wrongly, predicted rightly but without confidence."""

    @property
    def removed(self) -> Bool[Tensor, "images regions"]:
        """The sets as indicators."""
        return as_sets(self.order, self.effect.shape[1])

    @property
    def sizes(self) -> Int64[Tensor, "images"]:
        """Number of regions in each set."""
        return (self.order >= 0).sum(dim=1)

    def pixels(self, sets: Bool[Tensor, "images regions"]) -> Bool[Tensor, "images height width"]:
        """Sets of regions as pixel masks."""
        partition = numbers(self.partition).expand(len(sets), -1, -1)
        return sets.gather(1, partition.flatten(1)).view(partition.shape)

    def rows(self, index: Tensor) -> "Masks":
        """Some of the images."""
        whole = self._fields_without_rows(self.shared)
        return Masks(**{name: value if name in whole else value[index] for name, value in vars(self).items()})

    @staticmethod
    def _fields_without_rows(shared: bool) -> tuple[str, ...]:
        return (*WHOLE, "partition") if shared else WHOLE

    def summary(self) -> dict[str, float]:
        """The search in a few numbers; areas are shares of the image."""
        flipped = self.sizes[self.flipped].double()
        area = (self.removed * self.areas).sum(dim=1)[self.flipped].double()
        looked, wrong, unsure = self.selection_counts.tolist()
        return {
            "screened": looked,
            "misclassified": wrong,
            "not_confident": unsure,
            "searched": float(len(self.index)),
            "flip_rate": float(self.flipped.double().mean()),
            "regions_at_flip": float(flipped.mean()) if len(flipped) else 0.0,
            "area_at_flip": float(area.mean()) if len(flipped) else 0.0,
            "forwards_per_image": float(self.forwards.double().mean()),
        }

    def save(self, path: Path, model: str, data: str) -> None:
        """Write everything into one file.

        Args:
            path: The file.
            model: Fingerprint of the explained model.
            data: Identity of the split.
        """
        partition = numbers(self.partition).to(torch.uint16)
        tensors = vars(self) | {"shared": torch.tensor(self.shared), "partition": partition}
        save_tensors(path, tensors, {"model": model, "data": data})

    @classmethod
    def load(cls, folder: Path, model: str, data: str, images: int | None = None) -> "Masks":
        """All shards in a folder, of the model and the data with these fingerprints; the data have `images` images.

        One partition for each image stays in the files until it is asked for.

        Raises:
            UserError: there are none, they are damaged, or they belong to another model or to other data.
        """
        files = sorted(folder.glob(FILE.format(0).replace("00000", "*"))) or [folder / FILE.format(0)]
        loaded = [load_explanation(file, "generate_masks", model, data, _is_held) for file in files]
        return cls.joined([cls._of(one, file, images) for one, file in zip(loaded, files, strict=True)])

    @classmethod
    def read(cls, path: Path) -> "Masks":
        """One file, whatever model and data it belongs to."""
        return cls._of(load_tensors(path, "generate_masks", _is_held)[0], path)

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], path: Path, images: int | None = None) -> "Masks":
        if {*tensors, FIELD} == {field.name for field in fields(cls)}:
            shared, regions = bool(tensors["shared"].all()), tensors["effect"].shape[-1]
            tensors = tensors | {FIELD: opened(path, shared, regions)}
        if tensors.get(FIELD) is None:
            raise UserError(f"{path} was written by another version of the search: run the stage generate_masks again")
        if not cls._are_sound(tensors, cls._fields_without_rows(shared), images):
            raise UserError(
                f"{path} is damaged (its tensors do not fit together, or name images or regions that do not exist): "
                "delete its folder and run the stage generate_masks again"
            )
        return cls(**tensors | {"shared": shared})

    @staticmethod
    def _are_sound(tensors: dict[str, Tensor], whole: tuple[str, ...], images: int | None) -> bool:
        """Whether the tensors fit together and every number names something; a damaged file may hold anything."""
        index, order, partition, effect = (tensors[name] for name in ("index", "order", "partition", "effect"))
        rows = {value.shape[:1] for name, value in tensors.items() if name not in whole}
        if rows != {(len(effect),)} or (effect.ndim, len(partition.shape)) != (2, 3) or not len(partition):
            return False
        if tensors["flipped"].dtype != torch.bool or any(
            one.dtype != torch.int64 or not one.numel() for one in (index, order)
        ):
            return False
        bounds = [(index, 0, images or 2**62), (order, -1, effect.shape[1])]
        if isinstance(partition, Tensor):
            bounds.append((partition.long(), 0, effect.shape[1]))
        return all(low <= one.min() and one.max() < high for one, low, high in bounds)

    @classmethod
    def joined(cls, shards: list["Masks"]) -> "Masks":
        """The rows of several shards of one search."""
        first, columns = shards[0], {field.name: [vars(shard)[field.name] for shard in shards] for field in fields(cls)}
        whole = cls._fields_without_rows(first.shared)
        return cls(**{name: parts[0] if name in whole else joined(parts) for name, parts in columns.items()})


def _is_held(name: str) -> bool:
    """Whether a tensor of a file of masks is held in memory."""
    return name != FIELD
