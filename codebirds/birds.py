"""Codebirds: rendered birds whose class is a codeword, so that every sufficient cause of a class is known.

Each of five parts shows one symbol of the codeword through its own kind of cue (hue, texture, two silhouettes, count);
the scene behind the bird follows the class in the training distribution only by correlation. One image depends on its
split, its index and the params alone: rendering in any order or chunking, on any machine, gives the same bytes.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from codebirds import painting
from codebirds.factors import Design, Factors
from codebirds.shapes import Bool, UInt8

CHUNK = 64
"""Images rendered at once by one thread: the planes of a chunk fit into the cache."""


@dataclass(frozen=True)
class Codebirds(Design):
    """The data set for one set of params, rendered."""

    threads: int = 1
    """Rendering threads; the images do not depend on them."""

    def images(self, factors: Factors) -> UInt8[np.ndarray, "batch 3 height width"]:
        """The rendered images."""
        side = self.params.image_size
        return self._in_chunks(factors, painting.paint, np.empty((len(factors.index), 3, side, side), dtype=np.uint8))

    def part_masks(self, factors: Factors) -> Bool[np.ndarray, "batch parts height width"]:
        """The pixels of each part that are visible in the image (nothing later covers more than half of them)."""
        side = self.params.image_size
        shape = (len(factors.index), self.code.length, side, side)
        return self._in_chunks(factors, painting.part_masks, np.empty(shape, dtype=bool))

    def backgrounds(self, factors: Factors) -> UInt8[np.ndarray, "batch 3 height width"]:
        """The same images without their birds."""
        return self.images(replace(factors, bird=np.zeros_like(factors.bird)))

    def _in_chunks(
        self, factors: Factors, paint: Callable[[Design, Factors], np.ndarray], out: np.ndarray
    ) -> np.ndarray:
        """Fill `out` chunk by chunk on all threads."""

        def fill(start: int) -> None:
            rows = slice(start, start + CHUNK)
            out[rows] = paint(self, factors.rows(rows))

        starts = range(0, len(factors.index), CHUNK)
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(fill, starts))
        return out
