"""The data set that params.yaml names: its splits of the training distribution.

Shifted splits are not opened here but in data.shifts, which only evaluation may import.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from codebirds.birds import Codebirds
from codebirds.codes import Code
from codebirds.factors import CodebirdsParams, Factors
from everycause.artifacts import fingerprint
from everycause.data.cub import CubParams, cub_split
from everycause.data.imagenet import ImageNetParams, imagenet_split
from everycause.data.images import FolderParams, folder_split
from everycause.data.split import Split
from everycause.data.waterbirds import WaterbirdsParams, waterbirds_split
from everycause.params import Section

SplitName = Literal["train", "validation", "test"]


class DataParams(Section):
    """Which images."""

    source: Literal["codebirds", "folder", "cub", "imagenet", "waterbirds"]
    """`codebirds` renders the embedded data set; `folder` reads a user's own photos; the others read these data sets as published."""
    root: str = Field(min_length=1)
    """The data folder: root/split/class/image of one's own photos, or the folder of a published data set."""
    memory_mib: int = Field(ge=0)
    """A split that fits into this many MiB is read once and held; a larger one is read again in every epoch."""
    codebirds: CodebirdsParams
    folder: FolderParams
    cub: CubParams
    imagenet: ImageNetParams
    waterbirds: WaterbirdsParams

    @model_validator(mode="after")
    def _has_a_code(self) -> "DataParams":
        Code(self.codebirds.length, self.codebirds.dimension, self.codebirds.order)
        return self

    @property
    def code(self) -> Code | None:
        """The code whose words are the classes, where the data are rendered."""
        return (
            Code(self.codebirds.length, self.codebirds.dimension, self.codebirds.order)
            if self.source == "codebirds"
            else None
        )

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        sections = {
            "codebirds": self.codebirds,
            "folder": self.folder,
            "cub": self.cub,
            "imagenet": self.imagenet,
            "waterbirds": self.waterbirds,
        }
        return sections[self.source].image_size


def open_split(params: DataParams, name: SplitName, threads: int) -> Split:
    """A split of the training distribution.

    Raises:
        UserError: the data folder is not as it should be.
    """
    root = Path(params.root)
    match params.source:
        case "folder":
            split = folder_split(root, name, params.folder, threads)
        case "cub":
            split = cub_split(root, name, params.cub, threads)
        case "imagenet":
            split = imagenet_split(root, name, params.imagenet, threads)
        case "waterbirds":
            split = waterbirds_split(root, name, params.waterbirds, threads)
        case "codebirds":
            birds = Codebirds(params.codebirds, threads)
            split = rendered_split(birds, name, birds.factors(name))
    return split.kept_in_memory(params.memory_mib)


def rendered_split(birds: Codebirds, name: str, factors: Factors) -> Split:
    """Images of Codebirds, drawn when they are read."""
    return Split(
        name=name,
        labels=torch.from_numpy(factors.label),
        class_names=tuple("word-" + "".join(map(str, word)) for word in birds.code.words),
        image_size=birds.params.image_size,
        read=lambda index: torch.from_numpy(birds.images(factors.rows(index))),
        identity=fingerprint(f"codebirds {name}", birds.params.model_dump_json()),
    )
