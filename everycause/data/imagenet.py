"""ImageNet and its shifted test sets, in the layouts in which they are distributed: a folder per class, named by its WordNet id.

    root/TRAIN/wnid/*.JPEG   root/TEST/wnid/*.JPEG      ImageNet-1k, or some of its classes (ImageNet-100 by a list)
    root/RENDITIONS/wnid/…                              ImageNet-R: 200 of the classes, and the answer is sought among these alone
    root/SKETCH/wnid/…                                  ImageNet-Sketch: all classes
    root/CORRUPTED/corruption/severity/wnid/…           ImageNet-C as released: 224-pixel JPEGs that are not resized again

The order of the classes and the 200 of ImageNet-R are those of timm's own data files.
Sources: arXiv 1409.0575, 2006.16241 (R), 1905.13549 (Sketch), 1903.12261 (C).
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.resources import files as packaged
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from everycause.artifacts import fingerprint
from everycause.data.images import decoded, image_files, squared
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.params import Section

PUBLISHED = {
    "renditions": (200, (30_000,)),
    "sketch": (1000, (50_889, 50_874)),
    "test": (1000, (50_000,)),
    "corrupted": (1000, (50_000,)),
}
"""Classes and images of the published sets; two counts of Sketch are in circulation."""


class ImageNetParams(Section):
    """Where each set lies below data.root, and how photos become squares."""

    image_size: int = Field(ge=8, le=1024)
    """Side of the square that is cut out of the center, in pixels."""
    resize: int = Field(ge=8, le=2048)
    """The short side before that, in pixels (bicubic); released corruptions are not resized."""
    classes: str = Field(min_length=1)
    """`all`, or a file below data.root with a WordNet id per line (ImageNet-100)."""
    train: str
    test: str
    """The official validation images: they are the test set here."""
    renditions: str | None
    """ImageNet-R; null where there is none, and so for the others."""
    sketch: str | None
    corrupted: str | None
    validation_share: float = Field(gt=0, lt=1)
    """Share of each class's training images that is held out for validation."""
    seed: int = Field(ge=0)
    """Of the choice of validation images."""
    counts: Literal["published", "any"]
    """Whether sets of all classes must have the published number of classes and images."""


@lru_cache
def synsets(name: str = "imagenet") -> tuple[str, ...]:
    """The WordNet ids of a class list that timm ships, in order."""
    return tuple(packaged("timm.data").joinpath("_info", f"{name}_synsets.txt").read_text().split())


def class_ids(root: Path, params: ImageNetParams) -> tuple[str, ...]:
    """The classes, in the order of the logits.

    Raises:
        UserError: the list is missing, or names a class that ImageNet does not have.
    """
    if params.classes == "all":
        return synsets()
    file = _within(root, params.classes, "data.imagenet.classes")
    if not file.is_file():
        raise UserError(
            f"data.imagenet.classes: '{file}' is missing: put a list of WordNet ids there, one per line, or take 'all'"
        )
    wanted = file.read_text().split()
    if unknown := [one for one in wanted if one not in set(synsets())]:
        raise UserError(f"'{file}' names '{unknown[0]}', which is no class of ImageNet-1k")
    if len(wanted) < 2 or len(set(wanted)) < len(wanted):
        raise UserError(f"'{file}' must name at least two classes, each once")
    return tuple(one for one in synsets() if one in set(wanted))


def among_renditions(names: tuple[str, ...]) -> torch.Tensor:
    """The positions of ImageNet-R's classes among a model's.

    Raises:
        UserError: the model lacks some of them.
    """
    place = {name: number for number, name in enumerate(names)}
    if missing := [one for one in synsets("imagenet_r") if one not in place]:
        raise UserError(
            f"ImageNet-R has 200 classes, and {len(missing)} of them ('{missing[0]}' …) are not among the {len(names)} of this model: "
            "evaluate a model of all 1,000 classes, or set data.imagenet.renditions to null"
        )
    return torch.tensor([place[one] for one in synsets("imagenet_r")])


def imagenet_split(
    root: Path, name: Literal["train", "validation", "test"], params: ImageNetParams, threads: int
) -> Split:
    """One split of the training distribution; validation is held out of the training images, class by class.

    Raises:
        UserError: the tree is not as it should be; reading raises it for a file that is no whole image.
    """
    names = class_ids(root, params)
    if name == "test":
        return _split(
            root,
            "test",
            params.test,
            names,
            params,
            threads,
            "test" if params.classes == "all" else None,
            params.resize,
        )
    files, labels = _listed(_folder(root, params.train), names, every=True)
    held_out, generator = np.zeros(len(labels), dtype=bool), np.random.default_rng(params.seed)
    for label, class_name in enumerate(names):
        own = (labels == label).nonzero()[0]
        if len(own) < 2:
            raise UserError(
                f"'{root / params.train / class_name}' holds one image, and validation needs one of at least two"
            )
        held_out[generator.permutation(own)[: min(max(1, round(params.validation_share * len(own))), len(own) - 1)]] = (
            True
        )
    index = (held_out == (name == "validation")).nonzero()[0]
    return _of_files(name, [files[i] for i in index], labels[index], names, root, params.resize, params, threads)


def shifted_split(root: Path, kind: Literal["renditions", "sketch"], params: ImageNetParams, threads: int) -> Split:
    """ImageNet-R or ImageNet-Sketch; labels are positions among all classes.

    Raises:
        UserError: the tree is not as it should be, or the model's classes do not contain those of ImageNet-R.
    """
    names = class_ids(root, params)
    if kind == "renditions":
        among_renditions(names)
    published = kind if kind == "renditions" or params.classes == "all" else None
    return _split(root, kind, str(getattr(params, kind)), names, params, threads, published, params.resize)


def released_corruption(root: Path, corruption: str, severity: int, params: ImageNetParams, threads: int) -> Split:
    """One cell of ImageNet-C as released: its JPEGs are 224 pixels and are only cropped.

    Raises:
        UserError: the tree is not as it should be.
    """
    names, place = class_ids(root, params), f"{params.corrupted}/{corruption}/{severity}"
    published = "corrupted" if params.classes == "all" else None
    return _split(root, f"corruptions/{corruption}/{severity}", place, names, params, threads, published, None)


def _split(
    root: Path,
    name: str,
    place: str,
    names: tuple[str, ...],
    params: ImageNetParams,
    threads: int,
    published: str | None,
    resize: int | None,
) -> Split:
    """A tree of class folders, held against the published set's size where one is named."""
    folder = _folder(root, place)
    files, labels = _listed(folder, names, every=name == "test")
    if published is not None and params.counts == "published":
        classes, counts = PUBLISHED[published]
        if len(np.unique(labels)) != classes or len(files) not in counts:
            raise UserError(
                f"'{folder}' holds {len(files):,} images of {len(np.unique(labels))} classes, and the published set has "
                f"{' or '.join(f'{count:,}' for count in counts)} of {classes}: unpack it again, or set data.imagenet.counts to any"
            )
    return _of_files(name, files, labels, names, root, resize, params, threads)


def _of_files(
    name: str,
    files: list[Path],
    labels: np.ndarray,
    names: tuple[str, ...],
    root: Path,
    resize: int | None,
    params: ImageNetParams,
    threads: int,
) -> Split:
    """A split that decodes its files when they are read."""

    def read(index: np.ndarray) -> torch.Tensor:
        with ThreadPoolExecutor(threads) as pool:
            return torch.stack(list(pool.map(lambda i: squared(decoded(files[i]), params.image_size, resize), index)))

    listing = "\n".join(str(file.relative_to(root)) for file in files)
    return Split(
        name,
        torch.from_numpy(labels),
        names,
        params.image_size,
        read,
        fingerprint(f"imagenet {params.image_size} {resize}", listing),
    )


def _listed(folder: Path, names: tuple[str, ...], every: bool) -> tuple[list[Path], np.ndarray]:
    """The files of a tree wnid/image and their labels; folders of other classes of ImageNet are passed over, others are errors."""
    place = {name: number for number, name in enumerate(names)}
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if unknown := [one for one in found if one not in set(synsets())]:
        raise UserError(
            f"'{folder / unknown[0]}' is not the folder of an ImageNet class: class folders are named by WordNet ids such as n01440764"
        )
    if every and (missing := [one for one in names if one not in set(found)]):
        raise UserError(
            f"'{folder}' has no folder for the class '{missing[0]}' ({len(missing)} of {len(names)} are missing)"
        )
    files: list[Path] = []
    labels: list[int] = []
    for one in (name for name in found if name in place):
        own = image_files(folder / one)
        if not own:
            raise UserError(f"the class folder '{folder / one}' is empty: unpack the data set again")
        files += own
        labels += [place[one]] * len(own)
    if not files:
        raise UserError(
            f"'{folder}' has no images of the {len(names)} classes: class folders are named by WordNet ids such as n01440764"
        )
    return files, np.array(labels)


def _folder(root: Path, place: str) -> Path:
    folder = _within(root, place, "data.imagenet")
    if not folder.is_dir():
        raise UserError(
            f"'{folder}' is missing: unpack the data set there, or change its name in data.imagenet (null for a shifted set that you do not have)"
        )
    return folder


def _within(root: Path, place: str, key: str) -> Path:
    path = root / place
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{key}: '{place}' lies outside data.root '{root}': paths may not leave the data folder")
    return path
