"""ImageNet and its shifted test sets as they are distributed: a folder per class, named by its WordNet id.

    root/TRAIN/wnid/*.JPEG   root/TEST/wnid/*.JPEG      ImageNet-1k, or some of its classes (ImageNet-100 by a list)
    root/RENDITIONS/wnid/…                              ImageNet-R: 200 classes, the only answers to its images
    root/SKETCH/wnid/…                                  ImageNet-Sketch: all classes
    root/CORRUPTED/corruption/severity/wnid/…           ImageNet-C as released: JPEGs of 224 pixels, not resized again

The order of the classes and the 200 of ImageNet-R are those of timm's own data files.
Sources: arXiv 1409.0575, 2006.16241 (R), 1905.13549 (Sketch), 1903.12261 (C).
"""

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files as packaged
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from everycause.artifacts import code_fingerprint, fingerprint
from everycause.data.images import (
    content_digest,
    decoded,
    held_out,
    image_files,
    read_files,
    squared,
    visible_entries,
    within,
)
from everycause.data.split import PhotographParams, Split, View
from everycause.errors import UserError

PUBLISHED = {
    "renditions": (200, (30_000,)),
    "sketch": (1000, (50_889, 50_874)),
    "test": (1000, (50_000,)),
    "corrupted": (1000, (50_000,)),
}
"""Number of classes, and possible numbers of images, of the published sets; Sketch is in circulation with two."""


class ImageNetParams(PhotographParams):
    """Where each set lies below data.root, and how photographs become images of one size."""

    resize: int | None = Field(ge=8, le=2048)
    """The short side before the square is cut out, in pixels; null: as a pretrained network was trained, or
    `image_size`. Released corruptions are not resized."""
    classes: str = Field(min_length=1)
    """`all`, or a file below data.root with a WordNet id per line (ImageNet-100)."""
    train: str
    """Folder of the training images."""
    test: str
    """Folder of the official validation images, which are the test set here."""
    renditions: str | None
    """Folder of ImageNet-R; null if there is none."""
    sketch: str | None
    """Folder of ImageNet-Sketch; null if there is none."""
    corrupted: str | None
    """Folder of ImageNet-C; null if the corruptions are to be made here, which gives no mCE."""
    validation_share: float = Field(gt=0, lt=1)
    """Share of each class's training images that is held out for validation."""
    seed: int = Field(ge=0, le=2**32 - 1)
    """Seed of the choice of validation images."""
    counts: Literal["published", "any"]
    """Whether sets of all classes must have the published number of classes and images."""


PARAMS = ImageNetParams


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
    file = within(root, params.classes, "data.imagenet.classes")
    if not os.path.isfile(file):
        raise UserError(
            f"data.imagenet.classes: '{file}' is missing: put a list of WordNet ids there, one per line, or take 'all'"
        )
    try:
        wanted = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.imagenet.classes: '{file}' cannot be read ({error}): name a text file") from error
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
            f"ImageNet-R has 200 classes, and {len(missing)} of them ('{missing[0]}' …) are not among the {len(names)} "
            "of this model: evaluate a model of all 1,000 classes, or set data.imagenet.renditions to null"
        )
    return torch.tensor([place[one] for one in synsets("imagenet_r")])


def open_split(root: Path, name: str, params: ImageNetParams, threads: int) -> Split:
    """One split of the training distribution; validation is held out of the training images, class by class.

    Raises:
        UserError: the tree is not as it should be; reading raises it for a file that is no whole image.
    """
    names = class_ids(root, params)
    if name == "test":
        if _folder(root, params.test).resolve() == _folder(root, params.train).resolve():
            raise UserError("data.imagenet.test is the folder of the training images: name that of the test images")
        published = "test" if params.classes == "all" else None
        return _of_files(root, name, *_test_set(root, name, params.test, names, params, published), params, threads)
    images, labels = _listed(_folder(root, params.train), names, every=True)
    for label, class_name in enumerate(names):
        if (labels == label).sum() < 2:
            raise UserError(
                f"'{root / params.train / class_name}' holds one image, and validation needs one of at least two"
            )
    index = (held_out(labels, params.validation_share, params.seed) == (name == "validation")).nonzero()[0]
    return _of_files(root, name, [images[i] for i in index], labels[index], params, threads)


def test_view(root: Path, params: ImageNetParams, threads: int) -> View:
    """The test split, to be answered among the classes of ImageNet-R as well where params name its folder.

    Raises:
        UserError: the tree is not as it should be.
    """
    split = open_split(root, "test", params, threads)
    return View(split, compared=None if params.renditions is None else among_renditions(split.class_names))


def shifted_views(root: Path, params: ImageNetParams, threads: int) -> Iterator[View]:
    """ImageNet-R and ImageNet-Sketch, if params name their folders."""
    for kind in ("renditions", "sketch"):
        if getattr(params, kind) is not None:
            split = shifted_split(root, kind, params, threads)
            yield View(split, among=among_renditions(split.class_names) if kind == "renditions" else None)


def shifted_split(root: Path, kind: Literal["renditions", "sketch"], params: ImageNetParams, threads: int) -> Split:
    """ImageNet-R or ImageNet-Sketch; labels are positions among all classes.

    Raises:
        UserError: the tree is not as it should be, or the model's classes do not contain those of ImageNet-R.
    """
    names = class_ids(root, params)
    if kind == "renditions":
        among_renditions(names)
    published = kind if kind == "renditions" or params.classes == "all" else None
    found = _test_set(root, kind, str(getattr(params, kind)), names, params, published)
    return _of_files(root, kind, *found, params, threads)


def released_view(root: Path, corruption: str, severity: int, params: ImageNetParams, threads: int) -> View | None:
    """One corruption and severity of ImageNet-C as released; None if params name no folder of it.

    Raises:
        UserError: the tree is not as it should be.
    """
    if params.corrupted is None:
        return None
    name = f"corruptions/{corruption}/{severity}"
    found = _released(root, corruption, severity, params)
    return View(_of_files(root, name, *found, params, threads, resize=None), released=True)


def files(root: Path, params: ImageNetParams) -> list[Path]:
    """Every image of every set that params name.

    Raises:
        UserError: a tree is not as it should be, or the classes do not contain those of ImageNet-R.
    """
    names = class_ids(root, params)
    found = list(_listed(_folder(root, params.train), names, every=True)[0])
    found += _test_set(root, "test", params.test, names, params, "test" if params.classes == "all" else None)[0]
    for kind in ("renditions", "sketch"):
        if (place := getattr(params, kind)) is not None:
            if kind == "renditions":
                among_renditions(names)
            published = kind if kind == "renditions" or params.classes == "all" else None
            found += _test_set(root, kind, place, names, params, published)[0]
    if params.corrupted is not None:
        for folder in (one for one in visible_entries(_folder(root, params.corrupted)) if one.is_dir()):
            for severity in (number for number in range(1, 6) if (folder / str(number)).is_dir()):
                found += _released(root, folder.name, severity, params)[0]
    return found


def tables(root: Path, params: ImageNetParams) -> list[Path]:
    """The list of classes, if params name one."""
    return [] if params.classes == "all" else [within(root, params.classes, "data.imagenet.classes")]


def _released(root: Path, corruption: str, severity: int, params: ImageNetParams) -> tuple[list[Path], np.ndarray]:
    """Files and labels of one corruption and severity of ImageNet-C."""
    place, published = f"{params.corrupted}/{corruption}/{severity}", "corrupted" if params.classes == "all" else None
    return _test_set(root, "corruptions", place, class_ids(root, params), params, published)


def _test_set(
    root: Path, name: str, place: str, names: tuple[str, ...], params: ImageNetParams, published: str | None
) -> tuple[list[Path], np.ndarray]:
    """Files and labels of a test set, whose size is compared with that of the published set if one is named."""
    folder = _folder(root, place)
    found, labels = _listed(folder, names, every=name == "test")
    if published is not None and params.counts == "published":
        classes, counts = PUBLISHED[published]
        if len(np.unique(labels)) != classes or len(found) not in counts:
            numbers = " or ".join(f"{count:,}" for count in counts)
            raise UserError(
                f"'{folder}' holds {len(found):,} images of {len(np.unique(labels))} classes, "
                f"and the published set has {numbers} of {classes}: unpack it again, or set data.imagenet.counts to any"
            )
    return found, labels


def _of_files(
    root: Path,
    name: str,
    images: list[Path],
    labels: np.ndarray,
    params: ImageNetParams,
    threads: int,
    resize: int | None = 0,
) -> Split:
    """A split that decodes its files when they are read; 0 resizes as params say, None does not resize."""
    resize = params.resize or 0 if resize == 0 else resize
    names, size, framing = class_ids(root, params), params.image_size, params.framing
    classes = hashlib.sha256("\n".join(names).encode()).hexdigest()
    digest = content_digest(images, root)
    return Split(
        name=name,
        labels=torch.from_numpy(labels),
        class_names=names,
        image_size=size,
        read=lambda index: read_files(
            [images[i] for i in index], lambda file: squared(decoded(file), size, resize, framing), threads
        ),
        identity=fingerprint(
            f"imagenet {name} {params.image_size} {resize} {params.framing}",
            code_fingerprint(__name__),
            classes,
            digest,
        ),
    )


def _listed(folder: Path, names: tuple[str, ...], every: bool) -> tuple[list[Path], np.ndarray]:
    """The files of a tree wnid/image and their labels; folders of ImageNet classes outside `names` are passed over.

    Raises:
        UserError: a folder is named like no class of ImageNet, is empty, or is missing although `every` is set.
    """
    place, known = {name: number for number, name in enumerate(names)}, set(synsets())
    found = [entry.name for entry in visible_entries(folder) if entry.is_dir()]
    if unknown := [one for one in found if one not in known]:
        raise UserError(
            f"'{folder / unknown[0]}' is not the folder of an ImageNet class: "
            "class folders are named by WordNet ids such as n01440764"
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
            f"'{folder}' has no images of the {len(names)} classes: "
            "class folders are named by WordNet ids such as n01440764"
        )
    return files, np.array(labels)


def _folder(root: Path, place: str) -> Path:
    """The folder of one of the sets.

    Raises:
        UserError: it is missing or lies outside data.root.
    """
    folder = within(root, place, "data.imagenet")
    if not os.path.isdir(folder):
        raise UserError(
            f"'{folder}' is missing: unpack the data set there, or change its name in data.imagenet "
            "(null for a shifted set that you do not have)"
        )
    return folder
