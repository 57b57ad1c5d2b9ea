"""What counterfactual images of Codebirds really show: which parts changed, towards which class, and the scene.

The renderer draws the same bird, in the same pose, with every other variant of a part, and in every other scene. What a
changed image shows is the drawing that is nearest to it, on the pixels where the drawings differ. Original images are
read without an error, because they are one of the drawings.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from codebirds.birds import Codebirds
from codebirds.factors import Factors
from codebirds.glyphs import CUES
from everycause.shapes import Float, Int64, UInt8

Pictures = UInt8[np.ndarray, "images 3 height width"]


class Reading(NamedTuple):
    """What is nearest to changed images among drawings of one part, or of the scene."""

    shown: Int64[np.ndarray, "images"]
    """Number of the nearest drawing: a variant, or a kind of scene."""
    progress: Float[np.ndarray, "images"]
    """How far the image went on the straight line from the original to the target's drawing: 0 not at all, 1 all the
    way; NaN where the two are the same drawing."""


class Drawings(NamedTuple):
    """Everything that the renderer can show in the place of some images."""

    birds: Codebirds
    factors: Factors
    """What the originals are made from."""
    originals: Pictures
    parts: list[list[Pictures]]
    """For each part, the images with each of its variants."""
    scenes: list[Pictures]
    """The images in each kind of scene."""


def drawings(birds: Codebirds, factors: Factors) -> Drawings:
    """All drawings of some birds: one for each variant of each part, and for each kind of scene."""
    parts = [
        [birds.images(one) for one in _other_variants(factors, part, birds.code.order)]
        for part in range(birds.code.length)
    ]
    kinds = range(birds.num_classes)
    scenes = [birds.images(replace(factors, scene=np.full_like(factors.scene, kind))) for kind in kinds]
    return Drawings(birds, factors, birds.images(factors), parts, scenes)


def image_truth(
    drawn: Drawings, changed: Pictures, target: Int64[np.ndarray, "images"]
) -> dict[str, Float[np.ndarray, "images"]]:
    """What the changes of images really are; NaN where a measure has no meaning.

    `parts_changed`: number of parts that show another variant. `parts_towards`: of them, those that show the target's.
    `parts_progress`: mean progress towards the target's parts, and `parts_progress/CUE` that of one. `decodes`: whether
    as many parts show the target's word as determine a class, and more than show any other's. `scene_stayed`: whether
    the scene is still of its kind. `scene_progress`: progress towards the scene that the target mostly has. `on_parts`
    and `on_scene`: shares of the change that fall on the parts and beside the bird.

    Args:
        drawn: Drawings of the originals.
        changed: The changed images.
        target: The class that each was to become.
    """
    birds, factors, originals, words = drawn.birds, drawn.factors, drawn.originals, drawn.birds.code.words
    shown, progress = factors.variants.copy(), np.full(factors.variants.shape, np.nan)
    for part, choices in enumerate(drawn.parts):
        own, wanted = factors.variants[:, part], words[target, part]
        shown[:, part], progress[:, part] = reading(choices, originals, changed, own, wanted)
    other = shown != factors.variants
    scene = reading(drawn.scenes, originals, changed, factors.scene, target % birds.num_classes)
    known = (~np.isnan(progress)).sum(axis=1)
    change = np.abs(changed.astype(float) - originals).sum(axis=1)
    whole = np.where((total := change.sum(axis=(1, 2))) > 0, total, np.nan)
    parts = birds.part_masks(factors).any(axis=1)
    beside = (birds.backgrounds(factors) == originals).all(axis=1)
    return {
        "parts_changed": other.sum(axis=1).astype(float),
        "parts_towards": (other & (shown == words[target])).sum(axis=1).astype(float),
        "parts_progress": np.where(known > 0, np.nansum(progress, axis=1) / np.maximum(known, 1), np.nan),
        "decodes": decodes(words, shown, target, birds.code.dimension),
        "scene_stayed": (scene.shown == factors.scene).astype(float),
        "scene_progress": scene.progress,
        "on_parts": (change * parts).sum(axis=(1, 2)) / whole,
        "on_scene": (change * beside).sum(axis=(1, 2)) / whole,
    } | {f"parts_progress/{cue.name}": values for cue, values in zip(CUES, progress.T, strict=False)}


def _other_variants(factors: Factors, part: int, order: int) -> Iterator[Factors]:
    for variant in range(order):
        variants = factors.variants.copy()
        variants[:, part] = variant
        yield replace(factors, variants=variants)


def reading(
    choices: list[Pictures],
    originals: Pictures,
    changed: Pictures,
    own: Int64[np.ndarray, "images"],
    target: Int64[np.ndarray, "images"],
) -> Reading:
    """Which drawing changed images are nearest to, and how far they went towards the target's.

    Args:
        choices: Every choice, each drawn for every image.
        originals: The images as they were.
        changed: The changed images.
        own: The choice that each original shows.
        target: The choice of the target's class.
    """
    rows = np.arange(len(originals))
    stacked = np.stack(choices).astype(np.float32)
    differs = (stacked != stacked[:1]).any(axis=(0, 2))
    apart = ((stacked - changed.astype(np.float32)) ** 2).sum(axis=2) * differs
    distance = apart.sum(axis=(2, 3))
    # of drawings that look the same, such as those of a hidden part, the original's own
    shown = np.where(distance[own, rows] <= distance.min(axis=0), own, distance.argmin(axis=0))
    line = stacked[target, rows] - originals.astype(np.float32)
    moved = ((changed.astype(np.float32) - originals) * line).sum(axis=(1, 2, 3))
    length = (line**2).sum(axis=(1, 2, 3))
    known = (own != target) & (length > 0)
    progress = np.where(known, moved / np.where(known, length, 1), np.nan)
    return Reading(shown, progress.astype(np.float64))


def decodes(
    words: Int64[np.ndarray, "classes parts"],
    shown: Int64[np.ndarray, "images parts"],
    target: Int64[np.ndarray, "images"],
    dimension: int,
) -> Float[np.ndarray, "images"]:
    """Whether the word nearest to the parts that are shown is the target's alone, and enough of its parts are there."""
    agreeing = (shown[:, None] == words[None]).sum(axis=2)
    rows = np.arange(len(shown))
    own = agreeing[rows, target]
    agreeing[rows, target] = -1
    return ((own > agreeing.max(axis=1)) & (own >= dimension)).astype(float)


def ideal(birds: Codebirds, factors: Factors, target: Int64[np.ndarray, "images"]) -> Pictures:
    """The images that a perfect method would make: the same birds with the target's parts, in the same scenes."""
    return birds.images(replace(factors, variants=birds.code.words[target]))


def other_scene(birds: Codebirds, factors: Factors, target: Int64[np.ndarray, "images"]) -> Pictures:
    """The same birds in scenes of the kind that the target mostly has: who uses the scene answers otherwise."""
    return birds.images(replace(factors, scene=target % birds.num_classes))
