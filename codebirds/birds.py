"""Images of Codebirds, the visible pixels of their parts, and the same scenes without birds.

An image depends on its factors and on the settings alone: rendering in any order, in chunks of any size, with any
number of threads and on any machine gives the same bytes.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from codebirds import painting
from codebirds.factors import Design, Factors
from codebirds.shapes import Bool, UInt8

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
