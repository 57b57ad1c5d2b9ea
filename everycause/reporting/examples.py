"""Example pictures of a report as single small files, with what models make of each: for the page's gallery."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from everycause.artifacts import read_json, write_json
from everycause.reporting.pictures import TINT
from everycause.reporting.results import Findings, Pictures
from everycause.reporting.tables import class_name
from everycause.shapes import UInt8

FILE, FOLDER = "gallery.json", "gallery"
NO_PART = 255
PART_COLORS = tuple(tuple(round(255 * value) for value in color[:3]) for color in matplotlib.colormaps["tab10"].colors)


def write_examples(findings: Findings, folder: Path) -> None:
    """Write FOLDER/*.png and FILE below the folder of a report; nothing where no row stored example pictures.

    FILE is a list of examples: row, class, files by kind of picture, and what each model sees.
    """
    found = [("masks", findings.gallery), ("object_exchange", findings.exchange)]
    examples = [one for row, pictures in found if pictures is not None for one in _written(row, pictures, folder)]
    if examples:
        write_json(folder / FILE, examples)


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """The examples of a report; none where it has none.

    Raises:
        UserError: the file is damaged.
    """
    return read_json(folder / FILE, "report", kind=list) if (folder / FILE).is_file() else []


def _written(row: str, pictures: Pictures, folder: Path) -> list[dict[str, Any]]:
    """Write the pictures of one row."""
    (folder / FOLDER).mkdir(exist_ok=True)
    seen: dict[str, list[Any]] = pictures.description.get("seen", {})
    row = next((name for name in seen if name != "base"), row)
    examples = []
    for number, title in enumerate(pictures.description["titles"]):
        files = {}
        for kind, picture in _kinds(pictures.tensors, number).items():
            files[kind] = f"{FOLDER}/{row}-{number:02d}-{kind}.png"
            Image.fromarray(picture).save(folder / files[kind], optimize=True)
        models = {model: found[number] for model, found in seen.items()}
        examples.append({"row": row, "class": class_name(title), "files": files, "seen": models})
    return examples


def _kinds(tensors: dict[str, Tensor], number: int) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
    """The pictures of one example by kind."""
    image, after = (tensors[name][number].permute(1, 2, 0).numpy() for name in ("images", "counterfactuals"))
    removed = tensors["removed"][number].numpy()[..., None]
    tinted = np.where(removed, 0.25 * image + 0.75 * TINT, image).astype(np.uint8)
    made = {"image": image, "removed": tinted, "counterfactual": after}
    if "parts" not in tensors:
        return made
    gray = np.broadcast_to(image.mean(axis=2, keepdims=True), image.shape)
    colored, parts = 0.35 * gray + 0.65 * 255, tensors["parts"][number]
    for part in torch.unique(parts).tolist():
        if part != NO_PART:
            colored[(parts == part).numpy()] = PART_COLORS[part % len(PART_COLORS)]
    return {"image": image, "parts": colored.astype(np.uint8)} | made
