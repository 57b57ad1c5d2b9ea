"""Rendering of Codebirds, from factors to bytes, with the default params (64 pixels)."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from benchmarks.timing import median_seconds
from codebirds.birds import Codebirds
from codebirds.factors import CodebirdsParams

IMAGES = 1024


def draw(birds: Codebirds, index: np.ndarray) -> None:
    """Factors and images of some indices."""
    birds.images(birds.factors("train", index))


def measures() -> Iterator[tuple[str, float]]:
    """Images per second on one and two threads, and the gain of the second."""
    raw = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    birds = Codebirds(CodebirdsParams(**raw["data"]["codebirds"]))
    index = np.arange(IMAGES)
    seconds = {threads: median_seconds(partial(draw, replace(birds, threads=threads), index)) for threads in (1, 2)}
    yield "render.images_per_second", IMAGES / seconds[2]
    yield "render.images_per_second_one_core", IMAGES / seconds[1]
    yield "render.two_thread_speedup", seconds[1] / seconds[2]
