"""Images of Codebirds, the visible pixels of their parts, and the same scenes without birds.

An image depends on its factors and on the settings alone: rendering in any order, in chunks of any size, with any
number of threads and on any machine gives the same bytes.

The shifted test sets (`variations`) show the test birds in the same poses with another style, another scene, or other
parts, so that comparisons are paired image by image. In erasures and swaps the scene is independent of the class:
otherwise a classifier that reads the scene would look complete.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from codebirds import painting
from codebirds.factors import Design, Factors, erased
from codebirds.painting import RENDITIONS, SKETCH
from codebirds.shapes import Bool, Float, Int, UInt8

CHUNK = 64
"""Images rendered at once by one thread; the arrays of a chunk fit into the processor's cache."""


@dataclass(frozen=True)
class Codebirds(Design):
    """The data set of one set of settings, and its renderer."""

    threads: int = 1
    """Number of rendering threads; the images do not depend on it."""

    def images(self, factors: Factors) -> UInt8[np.ndarray, "batch 3 height width"]:
        """The images, in RGB."""
        side = self.settings.image_size
        return self._in_chunks(factors, painting.paint, np.empty((len(factors.index), 3, side, side), dtype=np.uint8))

    def part_masks(self, factors: Factors) -> Bool[np.ndarray, "batch parts height width"]:
        """The pixels of each part that are visible: nothing painted later covers more than half of them."""
        side = self.settings.image_size
        shape = (len(factors.index), self.code.length, side, side)
        return self._in_chunks(factors, painting.part_masks, np.empty(shape, dtype=bool))

    def backgrounds(self, factors: Factors) -> UInt8[np.ndarray, "batch 3 height width"]:
        """The same images without their birds."""
        return self.images(replace(factors, bird=np.zeros_like(factors.bird)))

    def _in_chunks(
        self, factors: Factors, paint: Callable[[Design, Factors], np.ndarray], out: np.ndarray
    ) -> np.ndarray:
        """Fill `out` chunk by chunk, on all threads."""

        def fill(start: int) -> None:
            rows = slice(start, start + CHUNK)
            out[rows] = paint(self, factors.rows(rows))

        starts = range(0, len(factors.index), CHUNK)
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(fill, starts))
        return out


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
