"""The shifted test sets of Codebirds: the test images with another style, another scene, or other parts.

All of them show the test birds in the same poses, so that comparisons are paired image by image. In erasures and swaps
the scene is independent of the class: otherwise a classifier that reads the scene would look complete.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from codebirds.factors import Design, Factors, erased
from codebirds.painting import RENDITIONS, SKETCH
from codebirds.shapes import Float, Int


def variations(birds: Design) -> Iterator[tuple[str, Factors]]:
    """The name and the factors of the test split and of every shifted test set."""
    test = birds.factors("test")
    yield "test", test
    rendition = RENDITIONS[0] + (test.draw("style")[:, 0] * len(RENDITIONS)).astype(int)
    yield "renditions", replace(test, style=rendition)
    yield "sketch", replace(test, style=np.full(len(test.index), SKETCH))
    independent = replace(test, scene=birds.free_scene(test))
    yield "scene_shift/independent", independent
    opposed = other_class(test.label, test.draw("scene_kind")[:, 0], birds.num_classes)
    yield "scene_shift/opposed", replace(test, scene=opposed)
    yield "scene_shift/scene_only", replace(test, scene=test.label, bird=np.zeros_like(test.bird))
    yield "scene_shift/bird_only", replace(test, scene=np.full_like(test.scene, -1))
    for size in range(1, birds.code.length + 1):
        for parts in birds.code.subsets(size):
            yield erasure_name(parts), erased(independent, parts)
    for size in (1, 2):
        if size <= birds.code.length:
            yield f"swaps/{size}", swapped(birds, independent, size)


def erasure_name(parts: tuple[int, ...]) -> str:
    """The name of the test set in which these parts are absent."""
    return "erasures/" + "-".join(map(str, parts)) if parts else "scene_shift/independent"


def swapped(birds: Design, factors: Factors, size: int) -> Factors:
    """The same images with `size` random parts taken from a random other class."""
    which, whose = factors.draw("swap").T
    subsets = np.array(birds.code.subsets(size))
    parts = subsets[(which * len(subsets)).astype(int)]
    donors = birds.code.words[other_class(factors.label, whose, birds.num_classes)]
    variants, rows = factors.variants.copy(), np.arange(len(parts))[:, None]
    variants[rows, parts] = donors[rows, parts]
    return replace(factors, variants=variants)


def other_class(
    label: Int[np.ndarray, "batch"], draw: Float[np.ndarray, "batch"], num_classes: int
) -> Int[np.ndarray, "batch"]:
    """A class other than the label, from a uniform draw in [0, 1)."""
    return (label + 1 + (draw * (num_classes - 1)).astype(int)) % num_classes
