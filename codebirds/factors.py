"""Birds without some of their parts: rendered away, not masked."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from pydantic import Field

from codebirds.codes import Code
from codebirds.glyphs import CUES, MAX_VARIANTS
from codebirds.scenes import random_words, uniforms
from codebirds.shapes import Bool, Float, Int
from everycause.params import Section

# MERGED DOC: """What the images of Codebirds are made from: classes as codewords, scenes, poses, and everything else that is drawn at random."""


class CodebirdsParams(Section):
    """The causal structure, the sizes and the difficulty of the data set."""

    version: int = Field(ge=1, le=1)
    """Version of the difficulty; any change to it is a new data set."""
    image_size: int = Field(ge=32, le=512)
    """Side of the square images, in pixels."""
    length: int = Field(ge=1, le=len(CUES))
    """Informative parts, n."""
    dimension: int = Field(ge=1)
    """Parts that determine the class, k."""
    order: int = Field(ge=2, le=MAX_VARIANTS)
    """Variants of each part, q: a prime power; there are q**k classes."""
    train: int = Field(ge=1)
    """Training images."""
    validation: int = Field(ge=1)
    """Validation images."""
    test: int = Field(ge=1)
    """Test images; every shifted split renders these same poses."""
    seed: int = Field(ge=0)
    """Seed of the data, independent of the training seeds."""
    layout_seed: int = Field(ge=0)
    """Permutes which place of the bird shows which cue; 0 is the layout of the README."""
    scene_correlation: float = Field(ge=0, le=1)
    """Probability that the scene is the class's own; otherwise it is uniform over all kinds."""
    distractor: bool
    """Whether a small object is placed beside the bird."""
    distractor_correlation: float = Field(ge=0, le=1)
    """Probability that the distractor is the class's own."""
    pixel_noise: float = Field(ge=0, le=0.5)
    """Half width of the uniform pixel noise, 1 being white."""
    hue_jitter: float = Field(ge=0, le=1)
    """Spread of the hue cue about its variant, in units of the spacing between variants."""
    hue_saturation: float = Field(gt=0, le=1)
    """Saturation of the hue cue."""
    texture_contrast: float = Field(gt=0, le=1)
    """Contrast of the texture cue."""
    rim_darkness: float = Field(ge=0, le=1)
    """Darkest rim about the shapes of a photo; each image draws its own between 0 and this."""
    scene_saturation: float = Field(ge=0.1, le=0.9)
    """Saturation of the scenes: how loudly they speak."""
    part_scale: float = Field(gt=0, le=2)
    """Size of the parts relative to the drawing's default."""


DRAWS = {
    "scene_follows": 1, "scene_kind": 1, "scene": 6, "palette": 3, "pose": 5, "light": 2, "body": 3, "style": 1,
    "part_hue": 5, "part_tone": 10, "part_place": 10, "part_size": 5, "part_turn": 5, "object": 6, "free_hue": 5, "swap": 2,
}  # fmt: skip
"""Uniform draws of one image, by name. New names go to the end: every image depends on this order."""
NUM_DRAWS = sum(DRAWS.values())


@dataclass(frozen=True)
class Factors:
    """Everything that an image of Codebirds is made from, one row per image."""

    split: str
    """Name of the split: it owns the scene bank and the seeds."""
    index: Int[np.ndarray, "batch"]
    """Number of the image within its split."""
    label: Int[np.ndarray, "batch"]
    """The class."""
    variants: Int[np.ndarray, "batch parts"]
    """The variant drawn at each part: the codeword, unless parts were swapped."""
    present: Bool[np.ndarray, "batch parts"]
    """Which parts are drawn."""
    scene: Int[np.ndarray, "batch"]
    """Kind of the scene, or −1 for a plain gray one."""
    bird: Bool[np.ndarray, "batch"]
    """Whether there is a bird at all."""
    style: Int[np.ndarray, "batch"]
    """Index into painting.STYLES."""
    draws: Float[np.ndarray, "batch draws"]
    """The image's uniform draws, in the order of DRAWS."""

    def draw(self, name: str) -> Float[np.ndarray, "batch columns"]:
        """The uniform draws of one name."""
        start = sum(width for other, width in DRAWS.items() if list(DRAWS).index(other) < list(DRAWS).index(name))
        return self.draws[:, start : start + DRAWS[name]]

    def rows(self, index: np.ndarray | slice) -> "Factors":
        """Some of the images."""
        arrays = {name: value[index] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays)

    def conforms(self, num_classes: int) -> Bool[np.ndarray, "batch"]:
        """Whether the scene is the one that follows the class in training."""
        return self.scene == self.label % num_classes


@dataclass(frozen=True)
class Design:
    """The data set before it is drawn: its code, its layout, and the factors of any split.

    Raises:
        ValueError: the params give no code.
    """

    params: CodebirdsParams

    @cached_property
    def code(self) -> Code:
        """The code whose words are the classes."""
        return Code(self.params.length, self.params.dimension, self.params.order)

    @property
    def num_classes(self) -> int:
        """Number of codewords."""
        return self.code.num_classes

    @cached_property
    def places(self) -> tuple[int, ...]:
        """The anchor of each part: the identity for layout seed 0, else a permutation drawn from it."""
        identity = np.arange(len(CUES))
        seed = self.params.layout_seed
        order = identity if seed == 0 else np.argsort(random_words((seed, 0), len(CUES)))
        return tuple(int(place) for place in order[: self.params.length])

    def key(self, split: str) -> int:
        """The 64-bit key of a split's random draws and of its scene bank."""
        digest = hashlib.sha256(f"codebirds {self.params.seed} {split}".encode()).digest()
        return int.from_bytes(digest[:8], "little")

    def size(self, split: str) -> int:
        """Number of images of a split of the training distribution."""
        return {"train": self.params.train, "validation": self.params.validation, "test": self.params.test}[split]

    def factors(self, split: str, index: Int[np.ndarray, "batch"] | None = None) -> Factors:
        """The factors of images of `split` (all of them by default) in the training distribution."""
        index = np.arange(self.size(split)) if index is None else index
        key = self.key(split)
        draws = uniforms(np.stack([random_words((key, int(i)), NUM_DRAWS) for i in index]))
        label = index % self.num_classes
        plain = Factors(
            split=split, index=index, label=label, variants=self.code.words[label],
            present=np.ones((len(index), self.code.length), dtype=bool), scene=label, bird=np.ones(len(index), dtype=bool),
            style=np.zeros(len(index), dtype=int), draws=draws,
        )  # fmt: skip
        follows = plain.draw("scene_follows")[:, 0] < self.params.scene_correlation
        return replace(plain, scene=np.where(follows, label, self.free_scene(plain)))

    def free_scene(self, factors: Factors) -> Int[np.ndarray, "batch"]:
        """A scene kind drawn independently of the class."""
        return (factors.draw("scene_kind")[:, 0] * self.num_classes).astype(int)


def erased(factors: Factors, parts: tuple[int, ...]) -> Factors:
    """The same images rendered without some parts."""
    present = factors.present.copy()
    present[:, list(parts)] = False
    return replace(factors, present=present)
