"""What the images of Codebirds are made from: the settings, and the class, scene, pose and draws of every image.

An image depends on its split, its index and the settings alone. Its random numbers come from a counter-based generator
whose key is the split and whose counter is the index, so any image can be made without making those before it.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from codebirds.codes import Code
from codebirds.glyphs import CUES, MAX_VARIANTS
from codebirds.shapes import Bool, Float, Int

LARGEST = 1_000_000
"""Images of a split: the random draws of a million of them take 0.5 GiB."""

RANGES: dict[str, tuple[float, float]] = {
    "image_size": (32, 512),
    "length": (1, len(CUES)),
    "dimension": (1, len(CUES)),
    "order": (2, MAX_VARIANTS),
    "train": (1, LARGEST),
    "validation": (1, LARGEST),
    "test": (1, LARGEST),
    "seed": (0, 2**32 - 1),
    "layout_seed": (0, 2**32 - 1),
    "scene_correlation": (0, 1),
    "distractor_correlation": (0, 1),
    "pixel_noise": (0, 0.5),
    "hue_jitter": (0, 1),
    "hue_saturation": (0, 1),
    "texture_contrast": (0, 1),
    "rim_darkness": (0, 1),
    "scene_saturation": (0.1, 0.9),
    "part_scale": (0, 2),
}
"""Smallest and largest value of each setting, both allowed unless it stands in POSITIVE."""
SIMPLE = {"hue_jitter": 0.32, "hue_saturation": 0.9, "texture_contrast": 1.0}
"""Hue and texture so plain that a network learns them first and little else: cue dominance 1."""
EVEN = {"hue_jitter": 1.0, "hue_saturation": 0.5, "texture_contrast": 0.5}
"""Hue and texture so weak that a network learns all five cues: cue dominance 0."""
SHARED = {
    "distractor": False,
    "distractor_correlation": 0.0,
    "pixel_noise": 0.055,
    "rim_darkness": 0.75,
    "scene_saturation": 0.4,
    "part_scale": 1.0,
}
"""What all named worlds have in common."""
WORLDS = {
    "premise": SIMPLE | SHARED | {"scene_correlation": 0.0},
    "confounded": SIMPLE | SHARED | {"scene_correlation": 0.9},
    "additive": EVEN | SHARED | {"scene_correlation": 0.9},
}
"""Named worlds. `premise`: a few simple cues suffice and the scene tells nothing. `confounded`: the same cues, and a
scene that mostly names the class. `additive` (version 1 of the data set): all cues are learned, and the scene too."""
OWN = "own"
"""The name of any other choice of these settings."""
POSITIVE = ("hue_saturation", "texture_contrast", "part_scale")
"""Settings that must be greater than the smallest value of their range: at 0 a cue would not be seen."""


@dataclass(frozen=True)
class Settings:
    """The causal structure, the sizes and the difficulty of the data set.

    Raises:
        ValueError: a value is out of range or is not that of the named world, the world does not exist, or length,
            dimension and order give no code.
    """

    world: str = "premise"
    """A key of WORLDS, whose settings must then have its values; `own` leaves them free."""
    image_size: int = 64
    """Side of the square images, in pixels."""
    length: int = 5
    """Number of informative parts, n."""
    dimension: int = 2
    """Number of parts that determine the class, k."""
    order: int = 4
    """Number of variants of each part, q: a prime power. There are q**k classes."""
    train: int = 3600
    """Number of training images."""
    validation: int = 480
    """Number of validation images."""
    test: int = 480
    """Number of test images; every shifted test set shows the birds of these in the same poses."""
    seed: int = 0
    """Seed of the data, independent of the seeds of training."""
    layout_seed: int = 0
    """Seed of the permutation of cues over places of the bird; 0 puts the hue on the crest, and so on."""
    scene_correlation: float = 0.0
    """Probability that the scene is the class's own; otherwise it is uniform over all kinds."""
    distractor: bool = False
    """Whether a small object is painted beside the bird."""
    distractor_correlation: float = 0.0
    """Probability that the distractor is the class's own; otherwise it is uniform over all kinds."""
    pixel_noise: float = 0.055
    """Half width of the uniform noise of pixels, in units of white."""
    hue_jitter: float = 0.32
    """Width of the distribution of the hue cue about its variant, in units of the spacing between variants."""
    hue_saturation: float = 0.9
    """Saturation of the hue cue."""
    texture_contrast: float = 1.0
    """Contrast of the texture cue."""
    rim_darkness: float = 0.75
    """Darkest rim around the shapes of a photo; each image draws its own between 0 and this."""
    scene_saturation: float = 0.4
    """Saturation of the colors of scenes: the higher, the easier a scene is recognized."""
    part_scale: float = 1.0
    """Size of the parts relative to the drawing's own."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high or (name in POSITIVE and value == low):
                between = f"above {low} and at most {high}" if name in POSITIVE else f"from {low} to {high}"
                raise ValueError(f"{name} is {value!r}: it must be {between}")
        Code(self.length, self.dimension, self.order)
        if self.world != OWN and self.world not in WORLDS:
            raise ValueError(f"there is no world '{self.world}': name {', '.join(WORLDS)}, or {OWN} for another choice")
        for name, value in WORLDS.get(self.world, {}).items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, and the world '{self.world}' has {value}: "
                    f"restore it, or set world to {OWN}"
                )


def dominance(share: float) -> dict[str, float]:
    """Hue and texture between EVEN (0) and SIMPLE (1): how much simpler they are to learn than the other cues."""
    return {name: share * SIMPLE[name] + (1 - share) * EVEN[name] for name in SIMPLE}


DRAWS = {
    "scene_follows": 1,
    "scene_kind": 1,
    "scene": 6,
    "palette": 3,
    "pose": 5,
    "light": 2,
    "body": 3,
    "style": 1,
    "part_hue": 5,
    "part_tone": 10,
    "part_place": 10,
    "part_size": 5,
    "part_turn": 5,
    "object": 6,
    "free_hue": 5,
    "swap": 2,
}
"""Uniform draws of one image, by name. New names go to the end: the bytes of every image depend on this order."""
NUM_DRAWS = sum(DRAWS.values())


@dataclass(frozen=True)
class Factors:
    """Everything that images of Codebirds are made from; each array has one row per image."""

    split: str
    """Name of the split, which selects the random draws and the bank of scenes."""
    index: Int[np.ndarray, "batch"]
    """Number of the image within its split."""
    label: Int[np.ndarray, "batch"]
    """The class."""
    variants: Int[np.ndarray, "batch parts"]
    """The variant of each part: the symbols of the codeword, unless parts were swapped."""
    present: Bool[np.ndarray, "batch parts"]
    """Which parts are drawn."""
    scene: Int[np.ndarray, "batch"]
    """Kind of the scene, from 0 to the number of classes − 1, or −1 for plain gray."""
    bird: Bool[np.ndarray, "batch"]
    """Whether a bird is painted before the scene."""
    style: Int[np.ndarray, "batch"]
    """Index into painting.STYLES."""
    draws: Float[np.ndarray, "batch draws"]
    """Uniform draws in [0, 1), in the order of DRAWS."""

    def draw(self, name: str) -> Float[np.ndarray, "batch columns"]:
        """The uniform draws of one name."""
        start = sum(width for other, width in DRAWS.items() if list(DRAWS).index(other) < list(DRAWS).index(name))
        return self.draws[:, start : start + DRAWS[name]]

    def rows(self, index: np.ndarray | slice) -> "Factors":
        """Some of the images."""
        arrays = {name: value[index] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays)

    def conforms(self, num_classes: int) -> Bool[np.ndarray, "batch"]:
        """Whether the scene is the one that its class mostly has in training."""
        return self.scene == self.label % num_classes


@dataclass(frozen=True)
class Design:
    """The data set before it is painted: its code, its layout, and the factors of any split."""

    settings: Settings

    @cached_property
    def code(self) -> Code:
        """The code whose words are the classes."""
        return Code(self.settings.length, self.settings.dimension, self.settings.order)

    @property
    def num_classes(self) -> int:
        """Number of codewords."""
        return self.code.num_classes

    @cached_property
    def places(self) -> tuple[int, ...]:
        """Place of each part, an index into painting.ANCHORS."""
        identity = np.arange(len(CUES))
        seed = self.settings.layout_seed
        order = identity if seed == 0 else np.argsort(random_words((seed, 0), len(CUES)))
        return tuple(int(place) for place in order[: self.settings.length])

    def key(self, split: str) -> int:
        """The 64-bit key of the random draws of a split, or of its bank of scenes."""
        digest = hashlib.sha256(f"codebirds {self.settings.seed} {split}".encode()).digest()
        return int.from_bytes(digest[:8], "little")

    def size(self, split: str) -> int:
        """Number of images of a split of the training distribution."""
        return {"train": self.settings.train, "validation": self.settings.validation, "test": self.settings.test}[split]

    def factors(self, split: str, index: Int[np.ndarray, "batch"] | None = None) -> Factors:
        """The factors of images of `split` (all of them by default) in the training distribution."""
        index = np.arange(self.size(split)) if index is None else index
        key = self.key(split)
        draws = uniforms(np.stack([random_words((key, int(i)), NUM_DRAWS) for i in index]))
        label = index % self.num_classes
        plain = Factors(
            split=split,
            index=index,
            label=label,
            variants=self.code.words[label],
            present=np.ones((len(index), self.code.length), dtype=bool),
            scene=label,
            bird=np.ones(len(index), dtype=bool),
            style=np.zeros(len(index), dtype=int),
            draws=draws,
        )
        follows = plain.draw("scene_follows")[:, 0] < self.settings.scene_correlation
        return replace(plain, scene=np.where(follows, label, self.free_scene(plain)))

    def free_scene(self, factors: Factors) -> Int[np.ndarray, "batch"]:
        """A scene kind drawn independently of the class."""
        return (factors.draw("scene_kind")[:, 0] * self.num_classes).astype(int)


def erased(factors: Factors, parts: tuple[int, ...]) -> Factors:
    """The same images painted without some parts."""
    present = factors.present.copy()
    present[:, list(parts)] = False
    return replace(factors, present=present)


def random_words(key: tuple[int, int], count: int) -> np.ndarray:
    """`count` 64-bit words of the counter-based generator Philox for this key, the same on every machine."""
    return np.random.Philox(key=np.array(key, dtype=np.uint64)).random_raw(count)


def uniforms(words: np.ndarray) -> Float[np.ndarray, "..."]:
    """64-bit words as numbers in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
