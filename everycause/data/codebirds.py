"""Codebirds as a data source: its section of params.yaml, its splits, shifted test sets, and erasures for validation.

Erasures of validation images are the one shifted set that selection may use, under a name of its own. They are rendered
from validation seeds and validation scenes, so no test image is touched. Only a sweep that maximizes "validation
completeness" and the record of the rounds use them (a test sees to it), and whatever is selected says so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from codebirds.birds import Codebirds, variations
from codebirds.codes import Code
from codebirds.factors import POSITIVE, RANGES, WORLDS, Factors, Settings
from everycause.artifacts import code_fingerprint, fingerprint
from everycause.data.split import Split, View
from everycause.errors import UserError
from everycause.params import Section
from everycause.shapes import Int64


def _in_range(name: str) -> Any:
    """The pydantic field of a setting, with the bounds of codebirds.factors."""
    low, high = RANGES[name]
    return Field(gt=low, le=high) if name in POSITIVE else Field(ge=low, le=high)


class CodebirdsParams(Section):
    """The fields of codebirds.factors.Settings, where each is explained; a named world brings its own settings."""

    world: str
    image_size: int = _in_range("image_size")
    length: int = _in_range("length")
    dimension: int = Field(ge=1)
    order: int = _in_range("order")
    train: int = _in_range("train")
    validation: int = _in_range("validation")
    test: int = _in_range("test")
    seed: int = _in_range("seed")
    layout_seed: int = _in_range("layout_seed")
    scene_correlation: float = _in_range("scene_correlation")
    distractor: bool
    distractor_correlation: float = _in_range("distractor_correlation")
    pixel_noise: float = _in_range("pixel_noise")
    hue_jitter: float = _in_range("hue_jitter")
    hue_saturation: float = _in_range("hue_saturation")
    texture_contrast: float = _in_range("texture_contrast")
    rim_darkness: float = _in_range("rim_darkness")
    scene_saturation: float = _in_range("scene_saturation")
    part_scale: float = _in_range("part_scale")

    @model_validator(mode="before")
    @classmethod
    def _with_the_settings_of_its_world(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("world") not in list(WORLDS):
            return raw
        return WORLDS[raw["world"]] | {name: value for name, value in raw.items() if value is not None}

    @model_validator(mode="after")
    def _is_a_world_with_a_code(self) -> "CodebirdsParams":
        try:
            Settings(**self.model_dump())
        except ValueError as error:
            raise UserError(str(error)) from error
        return self

    @property
    def settings(self) -> Settings:
        """The same values as the renderer takes them."""
        return Settings(**self.model_dump())

    @property
    def code(self) -> Code:
        """The code whose words are the classes."""
        return Code(self.length, self.dimension, self.order)


PARAMS = CodebirdsParams


def open_split(root: Path, name: str, params: CodebirdsParams, threads: int) -> Split:
    """One split of the training distribution; it has no files, and `root` is ignored."""
    birds = renderer(root, params, threads)
    return rendered_split(birds, name, birds.factors(name))


def files(root: Path, params: CodebirdsParams) -> list[Path]:
    """Nothing: the images are rendered."""
    return []


def test_view(root: Path, params: CodebirdsParams, threads: int) -> View:
    """The test split with the factors of its images."""
    birds = renderer(root, params, threads)
    factors = birds.factors("test")
    return View(rendered_split(birds, "test", factors), factors)


def shifted_views(root: Path, params: CodebirdsParams, threads: int) -> Iterator[View]:
    """Every shifted test set of the benchmark, with the factors of its images."""
    birds = renderer(root, params, threads)
    for name, factors in variations(birds):
        if name != "test":
            yield View(rendered_split(birds, name, factors), factors)


def groups(root: Path, name: str, params: CodebirdsParams) -> Int64[Tensor, "images"]:
    """The group of each image of a split: 2 · class, plus 1 where the scene is the one that its class mostly has."""
    birds = renderer(root, params, 1)
    factors = birds.factors(name)
    return torch.from_numpy(2 * factors.label + factors.conforms(birds.num_classes)).long()


def renderer(root: Path, params: CodebirdsParams, threads: int) -> Codebirds:
    """What draws the images, the pixels of their parts and their backgrounds."""
    return Codebirds(params.settings, threads)


def rendered_split(birds: Codebirds, name: str, factors: Factors) -> Split:
    """Images of Codebirds, drawn when they are read."""
    return Split(
        name=name,
        labels=torch.from_numpy(factors.label),
        class_names=tuple("word-" + "".join(map(str, word)) for word in birds.code.words),
        image_size=birds.settings.image_size,
        read=lambda index: torch.from_numpy(birds.images(factors.rows(index))),
        identity=fingerprint(
            f"codebirds {name}", code_fingerprint(__name__), CodebirdsParams(**vars(birds.settings)).model_dump_json()
        ),
    )
