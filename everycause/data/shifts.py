"""Shifted test splits. Only evaluation may import this module (a test sees to it).

Every shifted split of Codebirds renders the same test poses, so that comparisons are paired image by image. Erasures and
swaps have scenes that are independent of the class: otherwise a classifier that reads the scene would look complete.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from codebirds.birds import Codebirds
from codebirds.factors import Factors, erased
from codebirds.painting import RENDITIONS, SKETCH
from everycause.data.corruptions import corrupted
from everycause.data.imagenet import among_renditions, released_corruption, shifted_split
from everycause.data.images import folder_split, shift_names
from everycause.data.sources import DataParams, open_split, rendered_split
from everycause.data.split import Split
from everycause.data.waterbirds import groups
from everycause.shapes import Int64


class View(NamedTuple):
    """A split to evaluate on, and what else is known of it."""

    split: Split
    factors: Factors | None = None
    """What rendered images were made from."""
    groups: Int64[Tensor, "images"] | None = None
    """The group of each image, where the data set names groups."""
    among: Int64[Tensor, "answers"] | None = None
    """The classes among which the answer is sought, where they are not all."""
    released: bool = False
    """Whether these are the published corrupted images rather than some corrupted here."""

    @property
    def name(self) -> str:
        """family, or family/member."""
        return self.split.name


def views(
    params: DataParams, corruptions: list[str], severities: list[int], threads: int, cache: Path | None = None
) -> Iterator[View]:
    """The test split first, then every shifted one; what is corrupted here is kept in the cache, where there is one.

    Raises:
        UserError: the data folder is not as it should be.
    """
    root, test = Path(params.root), test_view(params, threads)
    held = test.split.kept_in_memory(params.memory_mib)
    yield test._replace(split=held)
    match params.source:
        case "codebirds":
            birds = Codebirds(params.codebirds, threads)
            yield from (
                View(rendered_split(birds, name, factors), factors)
                for name, factors in codebirds_variations(birds)
                if name != "test"
            )
        case "folder":
            yield from (View(folder_split(root, name, params.folder, threads)) for name in shift_names(root))
        case "imagenet":
            if params.imagenet.renditions is not None:
                yield View(
                    shifted_split(root, "renditions", params.imagenet, threads),
                    among=among_renditions(held.class_names),
                )
            if params.imagenet.sketch is not None:
                yield View(shifted_split(root, "sketch", params.imagenet, threads))
    released = params.source == "imagenet" and params.imagenet.corrupted is not None
    for corruption in corruptions:
        for severity in severities:
            if released:
                yield View(released_corruption(root, corruption, severity, params.imagenet, threads), released=True)
            else:
                yield View(corrupted(held, corruption, severity, cache))


def test_view(params: DataParams, threads: int) -> View:
    """The test split with what is known of it.

    Raises:
        UserError: the data folder is not as it should be.
    """
    if params.source == "codebirds":
        birds = Codebirds(params.codebirds, threads)
        factors = birds.factors("test")
        return View(rendered_split(birds, "test", factors), factors)
    return View(
        open_split(params, "test", threads),
        groups=groups(Path(params.root), "test") if params.source == "waterbirds" else None,
    )


def codebirds_variations(birds: Codebirds) -> Iterator[tuple[str, Factors]]:
    """The test factors and everything that can be changed about them."""
    test = birds.factors("test")
    yield "test", test
    rendition = RENDITIONS[0] + (test.draw("style")[:, 0] * len(RENDITIONS)).astype(int)
    yield "renditions", replace(test, style=rendition)
    yield "sketch", replace(test, style=np.full(len(test.index), SKETCH))
    independent = replace(test, scene=birds.free_scene(test))
    yield "scene_shift/independent", independent
    yield (
        "scene_shift/opposed",
        replace(test, scene=other_class(test.label, test.draw("scene_kind")[:, 0], birds.num_classes)),
    )
    yield "scene_shift/scene_only", replace(test, scene=test.label, bird=np.zeros_like(test.bird))
    yield "scene_shift/bird_only", replace(test, scene=np.full_like(test.scene, -1))
    for size in range(1, birds.code.length + 1):
        for parts in birds.code.subsets(size):
            yield erasure_name(parts), erased(independent, parts)
    for size in (1, 2):
        if size <= birds.code.length:
            yield f"swaps/{size}", swapped(birds, independent, size)


def erasure_name(parts: tuple[int, ...]) -> str:
    """The view in which these parts are absent."""
    return "erasures/" + "-".join(map(str, parts)) if parts else "scene_shift/independent"


def swapped(birds: Codebirds, factors: Factors, size: int) -> Factors:
    """The same images with `size` parts, drawn at random, taken from a random other class."""
    which, whose = factors.draw("swap").T
    subsets = np.array(birds.code.subsets(size))
    parts = subsets[(which * len(subsets)).astype(int)]
    donors = birds.code.words[other_class(factors.label, whose, birds.num_classes)]
    variants, rows = factors.variants.copy(), np.arange(len(parts))[:, None]
    variants[rows, parts] = donors[rows, parts]
    return replace(factors, variants=variants)


def other_class(label: np.ndarray, draw: np.ndarray, num_classes: int) -> np.ndarray:
    """A class other than the label, from a uniform draw in [0, 1)."""
    return (label + 1 + (draw * (num_classes - 1)).astype(int)) % num_classes
