"""CUB-200-2011 as it is published: lists of images, classes, the official split, bounding boxes and part locations.

Layout: root/{images.txt, image_class_labels.txt, train_test_split.txt, classes.txt, bounding_boxes.txt}, root/images/class/file.jpg,
root/parts/{parts.txt, part_locs.txt}. Each line of a list begins with a number that starts at 1.

Source: Wah, Branson, Welinder, Perona, Belongie, Caltech-UCSD Birds-200-2011, CNS-TR-2011-001; used by arXiv 2501.11087.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from everycause.artifacts import fingerprint
from everycause.data.images import decoded, squared
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.params import Section
from everycause.shapes import Bool, Float, Int64


class CubParams(Section):
    """How photos become images of one size, and what is held out."""

    image_size: int = Field(ge=8, le=1024)
    """The short side is resized to this many pixels (bicubic), then the center square is cut out."""
    crop: Literal["whole", "box"]
    """The whole photo, or its bounding box."""
    validation_share: float = Field(gt=0, lt=1)
    """Share of each class's official training images that is held out for validation."""
    seed: int = Field(ge=0)
    """Of the choice of validation images."""


@dataclass(frozen=True)
class Cub:
    """The lists, checked against each other; images are read later."""

    root: Path
    files: tuple[Path, ...]
    labels: Int64[np.ndarray, "images"]
    """From 0."""
    is_train: Bool[np.ndarray, "images"]
    class_names: tuple[str, ...]
    boxes: Float[np.ndarray, "images 4"]
    """Left, top, width, height, in pixels of the photo."""
    part_names: tuple[str, ...]
    parts: Float[np.ndarray, "images parts 3"]
    """x and y in pixels of the photo, and 1 where the part is visible."""

    @classmethod
    def open(cls, root: Path) -> "Cub":
        """The data set in a folder.

        Raises:
            UserError: a list is missing, a line is not what it should be, or lists do not agree; the sentence gives file and line.
        """
        if not root.is_dir():
            raise UserError(
                f"data.root is '{root}', which is not a folder: point it at CUB_200_2011, the folder that holds images.txt"
            )
        names = dict(_numbered(root / "images.txt", 1))
        classes = dict(_numbered(root / "classes.txt", 1))
        if list(classes) != list(range(1, len(classes) + 1)):
            raise UserError(
                f"'{root / 'classes.txt'}' does not number its classes 1, 2, 3, …: restore the published file"
            )
        tables = {
            file: dict(_numbered(root / file, columns))
            for file, columns in (("image_class_labels.txt", 1), ("train_test_split.txt", 1), ("bounding_boxes.txt", 4))
        }
        for file, table in tables.items():
            if missing := sorted(set(names) ^ set(table)):
                raise UserError(
                    f"image {missing[0]} is in only one of '{root / 'images.txt'}' and '{root / file}': restore the published files"
                )
        numbers = list(names)
        labels = np.array(
            [_whole(root / "image_class_labels.txt", tables["image_class_labels.txt"][number][0]) for number in numbers]
        )
        if wrong := [number for number, label in zip(numbers, labels, strict=True) if label not in classes]:
            raise UserError(
                f"image {wrong[0]} has a class that is not in '{root / 'classes.txt'}': restore the published files"
            )
        train = np.array(
            [
                _whole(root / "train_test_split.txt", tables["train_test_split.txt"][number][0]) == 1
                for number in numbers
            ]
        )
        boxes = np.array(
            [
                [_number(root / "bounding_boxes.txt", text) for text in tables["bounding_boxes.txt"][number]]
                for number in numbers
            ]
        )
        part_names, parts = _parts(root, numbers)
        files = tuple(_inside(root / "images", names[number][0], number) for number in numbers)
        return cls(
            root, files, labels - 1, train, tuple(text[0] for text in classes.values()), boxes, part_names, parts
        )

    def members(self, name: str, params: CubParams) -> Int64[np.ndarray, "members"]:
        """The images of a split. Validation is drawn class by class from the official training images; each class keeps one for training at least.

        Raises:
            UserError: a class has too few training images for a validation split, or no test image.
        """
        if name == "test":
            chosen = (~self.is_train).nonzero()[0]
            if absent := set(range(len(self.class_names))) - set(self.labels[chosen].tolist()):
                raise UserError(
                    f"the class '{self.class_names[min(absent)]}' has no test image in '{self.root / 'train_test_split.txt'}': restore the published file"
                )
            return chosen
        generator, held_out = np.random.default_rng(params.seed), np.zeros(len(self.labels), dtype=bool)
        for label, class_name in enumerate(self.class_names):
            own = (self.is_train & (self.labels == label)).nonzero()[0]
            if len(own) < 2:
                raise UserError(
                    f"the class '{class_name}' has {len(own)} official training images, and validation needs one of at least two"
                )
            count = min(max(1, round(params.validation_share * len(own))), len(own) - 1)
            held_out[generator.permutation(own)[:count]] = True
        return (self.is_train & (held_out == (name == "validation"))).nonzero()[0]

    def parts_in_image(self, index: int, params: CubParams) -> Float[np.ndarray, "parts 3"]:
        """A photo's part locations in pixels of the resized square, and 1 where a part is visible and inside it."""
        with Image.open(self.files[index]) as opened:
            left, top, width, height = self._frame(index, params) or (0, 0, *opened.size)
        scale = params.image_size / min(width, height)
        offset = np.array([left + (width - min(width, height)) / 2, top + (height - min(width, height)) / 2])
        places = (self.parts[index, :, :2] - offset) * scale
        inside = ((places >= 0) & (places < params.image_size)).all(axis=1)
        return np.concatenate([places, (self.parts[index, :, 2] * inside)[:, None]], axis=1)

    def _frame(self, index: int, params: CubParams) -> tuple[int, int, int, int] | None:
        """Left, top, width and height of what is shown of a photo; None for all of it."""
        if params.crop == "whole":
            return None
        left, top, width, height = (round(float(value)) for value in self.boxes[index])
        return left, top, max(1, width), max(1, height)

    def decode(self, index: int, params: CubParams) -> torch.Tensor:
        """One photo as an RGB square of uint8.

        Raises:
            UserError: the file is missing, no image, or not a whole one.
        """
        image, frame = decoded(self.files[index]), self._frame(index, params)
        if frame is not None:
            left, top, width, height = frame
            image = image.crop((left, top, left + width, top + height))
        return squared(image, params.image_size)


def cub_split(root: Path, name: str, params: CubParams, threads: int) -> Split:
    """One split of CUB-200-2011: the official test images, or the official training images without or with those held out.

    Raises:
        UserError: the lists are not as published; reading raises it for a file that is no whole image.
    """
    birds = Cub.open(root)
    index = birds.members(name, params)

    def read(rows: np.ndarray) -> torch.Tensor:
        with ThreadPoolExecutor(threads) as pool:
            return torch.stack(list(pool.map(lambda row: birds.decode(int(index[row]), params), rows)))

    listing = "\n".join(f"{birds.files[i].relative_to(birds.root)} {birds.labels[i]}" for i in index)
    return Split(
        name,
        torch.from_numpy(birds.labels[index]),
        birds.class_names,
        params.image_size,
        read,
        fingerprint(f"cub {name}", params.model_dump_json(), listing),
    )


def _lines(file: Path) -> list[tuple[int, list[str]]]:
    """The numbered lines of a list, split at spaces."""
    if not file.is_file():
        raise UserError(f"'{file}' is missing: data.root must be the published CUB_200_2011 folder")
    return [(number, line.split()) for number, line in enumerate(file.read_text().splitlines(), 1) if line.strip()]


def _numbered(file: Path, columns: int) -> list[tuple[int, list[str]]]:
    """The lines of a list whose first column is a number of its own."""
    found: dict[int, list[str]] = {}
    for number, (first, *rest) in _lines(file):
        if not first.isdigit() or len(rest) != columns:
            raise UserError(
                f"line {number} of '{file}' should hold a number and {columns} more column{'s' if columns > 1 else ''}: '{' '.join([first, *rest])}'"
            )
        if int(first) in found:
            raise UserError(f"line {number} of '{file}' repeats number {first}: restore the published file")
        found[int(first)] = rest
    if not found:
        raise UserError(f"'{file}' is empty: restore the published file")
    return list(found.items())


def _parts(root: Path, numbers: list[int]) -> tuple[tuple[str, ...], Float[np.ndarray, "images parts 3"]]:
    """Names and locations of the parts, 15 of them in the published data set."""
    names = {int(words[0]): " ".join(words[1:]) for _, words in _lines(root / "parts" / "parts.txt")}
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
                f"line {number} of '{file}' names image {image} and part {part}, and the lists do not know both: restore the published files"
            )
        parts[place[image], order[part]] = [_number(file, word) for word in words[2:]]
    return tuple(names.values()), parts


def _inside(folder: Path, name: str, number: int) -> Path:
    """A file of the list, which may not leave the data folder.

    Raises:
        UserError: it does, or it is missing.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"image {number} of images.txt is '{name}', which lies outside '{folder}': paths may not leave the data folder"
        )
    if not path.is_file():
        raise UserError(f"image {number} of images.txt, '{path}', is missing: unpack the data set again")
    return path


def _whole(file: Path, text: str) -> int:
    if not text.isdigit():
        raise UserError(f"'{file}' holds '{text}' where a whole number should be: restore the published file")
    return int(text)


def _number(file: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"'{file}' holds '{text}' where a number should be: restore the published file") from error
