"""CUB-200-2011 as it is published: lists of images, classes, the official split, bounding boxes and part locations.

Layout: root/{images.txt, image_class_labels.txt, train_test_split.txt, classes.txt, bounding_boxes.txt},
root/parts/{parts.txt, part_locs.txt}, root/images/class/file.jpg. A line of a list begins with a number, from 1.

Source: Wah, Branson, Welinder, Perona, Belongie, Caltech-UCSD Birds-200-2011, CNS-TR-2011-001. Used by
arXiv 2501.11087.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from everycause.artifacts import code_fingerprint, fingerprint
from everycause.data.images import Framing, content_digest, decoded, held_out, read_files, squared, within
from everycause.data.split import PhotographParams, Split
from everycause.errors import UserError
from everycause.shapes import Bool, Float, Int64


class CubParams(PhotographParams):
    """How photographs become images of one size (as in folder.py), and how many are held out for validation."""

    crop: Literal["whole", "box"]
    """Whether the whole photograph or the bounding box of its bird is shown."""
    validation_share: float = Field(gt=0, lt=1)
    """Share of each class's official training images that is held out for validation."""
    seed: int = Field(ge=0, le=2**32 - 1)
    """Seed of the choice of validation images."""


PARAMS = CubParams
LISTS = (
    "images.txt",
    "classes.txt",
    "image_class_labels.txt",
    "train_test_split.txt",
    "bounding_boxes.txt",
    "parts/parts.txt",
    "parts/part_locs.txt",
)


@dataclass(frozen=True)
class Cub:
    """The lists, checked against each other."""

    root: Path
    """The folder that holds images.txt."""
    files: tuple[Path, ...]
    """The photographs, in the order of images.txt."""
    labels: Int64[np.ndarray, "images"]
    """The class of each photograph, from 0."""
    is_train: Bool[np.ndarray, "images"]
    """Whether it is an official training image."""
    class_names: tuple[str, ...]
    boxes: Float[np.ndarray, "images 4"]
    """Left, top, width and height of the bird, in pixels of the photograph."""
    part_names: tuple[str, ...]
    parts: Float[np.ndarray, "images parts 3"]
    """x and y in pixels of the photograph, and 1 if the part is visible, else 0."""

    @classmethod
    def open(cls, root: Path) -> "Cub":
        """The data set in a folder.

        Raises:
            UserError: a list is missing, a line is not what it should be, or lists do not agree; the sentence gives
                file and line.
        """
        if not os.path.isdir(root):
            raise UserError(
                f"data.root is '{root}', which is not a folder: "
                "point it at CUB_200_2011, the folder that holds images.txt"
            )
        names = dict(_numbered(root / "images.txt", 1))
        classes = dict(_numbered(root / "classes.txt", 1))
        if list(classes) != list(range(1, len(classes) + 1)):
            raise UserError(
                f"'{root / 'classes.txt'}' does not number its classes 1, 2, 3, …: restore the published file"
            )
        numbers, rows = list(names), {}
        files = tuple(_inside(root / "images", names[number][0], number) for number in numbers)
        for number, file in zip(numbers, files, strict=True):
            if (first := rows.setdefault(file.resolve(), number)) != number:
                raise UserError(f"images {first} and {number} of '{root / 'images.txt'}' are one file, '{file}'")
        class_names = tuple(text[0] for text in classes.values())
        if len(set(class_names)) < len(class_names):
            raise UserError(f"'{root / 'classes.txt'}' names a class twice: restore the published file")
        labels = _column(root / "image_class_labels.txt", names, _whole)
        if wrong := [number for number, label in zip(numbers, labels, strict=True) if label not in classes]:
            raise UserError(
                f"image {wrong[0]} has a class that is not in '{root / 'classes.txt'}': restore the published files"
            )
        train = _column(root / "train_test_split.txt", names, _flag) == 1
        boxes = _column(root / "bounding_boxes.txt", names, _number, columns=4)
        if len(empty := (boxes[:, 2:] <= 0).any(axis=1).nonzero()[0]):
            raise UserError(
                f"'{root / 'bounding_boxes.txt'}' has an empty box for image {numbers[empty[0]]}: "
                "restore the published file"
            )
        part_names, parts = _parts(root, numbers)
        return cls(root, files, labels - 1, train, class_names, boxes, part_names, parts)

    def members(self, name: str, params: CubParams) -> Int64[np.ndarray, "members"]:
        """The images of a split; validation images are drawn class by class from the official training images.

        Raises:
            UserError: a class has too few training images for a validation split, or no test image.
        """
        if name == "test":
            chosen = (~self.is_train).nonzero()[0]
            if absent := set(range(len(self.class_names))) - set(self.labels[chosen].tolist()):
                raise UserError(
                    f"the class '{self.class_names[min(absent)]}' has no test image in "
                    f"'{self.root / 'train_test_split.txt'}': restore the published file"
                )
            return chosen
        official = self.is_train.nonzero()[0]
        counts = np.bincount(self.labels[official], minlength=len(self.class_names))
        if counts.min() < 2:
            class_name = self.class_names[int((counts < 2).argmax())]
            raise UserError(
                f"the class '{class_name}' has {counts[counts < 2][0]} official training images, "
                "and validation needs one of at least two"
            )
        validation = held_out(self.labels[official], params.validation_share, params.seed)
        return official[validation == (name == "validation")]

    def parts_in_image(self, index: int, params: CubParams) -> Float[np.ndarray, "parts 3"]:
        """Places of a photograph's parts in pixels of its square, and 1 if a part is visible and inside it, else 0."""
        with Image.open(self.files[index]) as opened:
            left, top, width, height = self._frame(index, params) or (0, 0, *opened.size)
        framing, sides = params.framing or Framing("bicubic", 1.0, "center"), np.array([width, height])
        resized = {"squash": sides, "border": sides.max()}.get(framing.mode, sides.min())
        scale = int(params.image_size / framing.crop) / resized
        places = (self.parts[index, :, :2] - [left, top] - sides / 2) * scale + params.image_size / 2
        inside = ((places >= 0) & (places < params.image_size)).all(axis=1)
        return np.concatenate([places, (self.parts[index, :, 2] * inside)[:, None]], axis=1)

    def _frame(self, index: int, params: CubParams) -> tuple[int, int, int, int] | None:
        """Left, top, width and height of what is shown of a photograph; None for all of it."""
        if params.crop == "whole":
            return None
        left, top, width, height = (round(float(value)) for value in self.boxes[index])
        return left, top, max(1, width), max(1, height)

    def decode(self, index: int, params: CubParams) -> torch.Tensor:
        """One photograph as a square.

        Raises:
            UserError: the file is missing, no image, or not a whole one, or its box does not lie in it.
        """
        image, frame = decoded(self.files[index]), self._frame(index, params)
        if frame is not None:
            left, top, width, height = frame
            middle = (left + width / 2) / image.width, (top + height / 2) / image.height
            if not (0 < min(middle) < max(middle) < 1 and width <= 2 * image.width and height <= 2 * image.height):
                raise UserError(
                    f"the box of '{self.files[index]}' in '{self.root / 'bounding_boxes.txt'}' does not lie in its "
                    f"{image.width} × {image.height} pixels: restore the published file"
                )
            image = image.crop((left, top, left + width, top + height))
        return squared(image, params.image_size, framing=params.framing)


def open_split(root: Path, name: str, params: CubParams, threads: int) -> Split:
    """The official test images, or the official training images without (train) or with those held out (validation).

    Raises:
        UserError: the lists are not as published; reading raises it for a file that is no whole image.
    """
    birds = Cub.open(root)
    index = birds.members(name, params)
    paths = [birds.files[i] for i in index]
    listing = "\n".join(f"{birds.files[i].relative_to(root)} {birds.labels[i]} {birds.boxes[i]}" for i in index)
    return Split(
        name=name,
        labels=torch.from_numpy(birds.labels[index]),
        class_names=birds.class_names,
        image_size=params.image_size,
        read=lambda rows: read_files(index[rows].tolist(), lambda row: birds.decode(row, params), threads),
        identity=fingerprint(
            f"cub {name}", code_fingerprint(__name__), params.described(), listing, content_digest(paths, root)
        ),
    )


def files(root: Path, params: CubParams) -> list[Path]:
    """Every photograph that images.txt names.

    Raises:
        UserError: the lists are not as published.
    """
    return list(Cub.open(root).files)


def tables(root: Path, params: CubParams) -> list[Path]:
    """The lists."""
    return [root / name for name in LISTS]


def _lines(file: Path) -> list[tuple[int, list[str]]]:
    """The numbered lines of a list, split at spaces."""
    if not file.is_file():
        raise UserError(f"'{file}' is missing: data.root must be the published CUB_200_2011 folder")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"'{file}' is no UTF-8 text ({error.reason}): restore the published file") from error
    return [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _numbered(file: Path, columns: int) -> list[tuple[int, list[str]]]:
    """The lines of a list whose first column is a number of its own."""
    found: dict[int, list[str]] = {}
    for number, (first, *rest) in _lines(file):
        if not _is_whole(first) or len(rest) != columns:
            raise UserError(
                f"line {number} of '{file}' should hold a number and {columns} more column"
                f"{'s' if columns > 1 else ''}: '{' '.join([first, *rest])}'"
            )
        if int(first) in found:
            raise UserError(f"line {number} of '{file}' repeats number {first}: restore the published file")
        found[int(first)] = rest
    if not found:
        raise UserError(f"'{file}' is empty: restore the published file")
    return list(found.items())


def _column(
    file: Path, names: dict[int, list[str]], value: Callable[[Path, str], float], columns: int = 1
) -> Int64[np.ndarray, "..."] | Float[np.ndarray, "..."]:
    """The columns of a list, in the order of images.txt.

    Raises:
        UserError: the list does not hold the same images, or a value is not what it should be.
    """
    found = dict(_numbered(file, columns))
    if missing := sorted(set(names) ^ set(found)):
        raise UserError(
            f"image {missing[0]} is in only one of '{file.parent / 'images.txt'}' and '{file}': "
            "restore the published files"
        )
    values = np.array([[value(file, text) for text in found[number]] for number in names])
    return values[:, 0] if columns == 1 else values


def _parts(root: Path, numbers: list[int]) -> tuple[tuple[str, ...], Float[np.ndarray, "images parts 3"]]:
    """Names and places of the parts, of which the published data set has 15."""
    listed = root / "parts" / "parts.txt"
    names = {_whole(listed, words[0]): " ".join(words[1:]) for _, words in _lines(listed)}
    place, file = {number: row for row, number in enumerate(numbers)}, root / "parts" / "part_locs.txt"
    order, parts = {number: column for column, number in enumerate(names)}, np.zeros((len(numbers), len(names), 3))
    for number, words in _lines(file):
        if len(words) != 5:
            raise UserError(
                f"line {number} of '{file}' should hold image, part, x, y and visibility: '{' '.join(words)}'"
            )
        image, part = _whole(file, words[0]), _whole(file, words[1])
        if image not in place or part not in order:
            raise UserError(
                f"line {number} of '{file}' names image {image} and part {part}, "
                "and the lists do not know both: restore the published files"
            )
        parts[place[image], order[part]] = [_number(file, word) for word in words[2:]]
    return tuple(names.values()), parts


def _inside(folder: Path, name: str, number: int) -> Path:
    """A file that images.txt names.

    Raises:
        UserError: it lies outside the folder or is missing.
    """
    path = within(folder, name, f"image {number} of images.txt")
    if not os.path.isfile(path):
        raise UserError(f"image {number} of images.txt, '{path}', is missing: unpack the data set again")
    return path


def _is_whole(text: str) -> bool:
    """Whether a text is a whole number that a list could hold."""
    return text.isdecimal() and len(text) < 10


def _whole(file: Path, text: str) -> int:
    if not _is_whole(text):
        raise UserError(f"'{file}' holds '{text[:20]}' where a whole number should be: restore the published file")
    return int(text)


def _flag(file: Path, text: str) -> int:
    if text not in ("0", "1"):
        raise UserError(f"'{file}' holds '{text[:20]}' where 0 or 1 should be: restore the published file")
    return int(text)


def _number(file: Path, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"'{file}' holds '{text}' where a number should be: restore the published file")
    return value
