"""Small image trees on disk, from the handwritten digits that scikit-learn ships: real scans."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def digits_tree(root: Path, classes: int, per_class: int) -> Path:
    """split/class/image.png with train, validation, test, and one shifted split (inverted gray levels)."""
    digits = load_digits()
    for label in range(classes):
        scans = (digits.images[digits.target == label] * (255 / 16)).astype(np.uint8)
        for number, split in enumerate(("train", "validation", "test", "inverted")):
            folder = root / split / f"digit-{label}"
            folder.mkdir(parents=True)
            start = min(number, 2) * per_class
            for index, scan in enumerate(scans[start : start + per_class]):
                picture = 255 - scan if split == "inverted" else scan
                Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return root


def cub_tree(root: Path, classes: int, per_class: int) -> None:
    """Noise with a red dot at its first part, in the layout of CUB-200-2011; of three images one is a test image."""
    generator = np.random.default_rng(0)
    lists: dict[str, list[str]] = {
        name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes", "classes")
    }
    places: list[str] = []
    number = 0
    for label in range(classes):
        folder = f"{label + 1:03d}.Bird_{label}"
        (root / "images" / folder).mkdir(parents=True)
        lists["classes"].append(f"{label + 1} {folder}")
        for member in range(per_class):
            number += 1
            width, height = (60, 40) if member % 2 == 0 else (40, 60)
            x, y = (34, 22) if member % 2 == 0 else (18, 34)
            pixels = generator.integers(60, 100, (height, width, 3)).astype(np.uint8)
            pixels[y - 3 : y + 4, x - 3 : x + 4] = (250, 20, 20)
            Image.fromarray(pixels).save(root / "images" / folder / f"bird_{member}.jpg", quality=95)
            lists["images"].append(f"{number} {folder}/bird_{member}.jpg")
            lists["image_class_labels"].append(f"{number} {label + 1}")
            lists["train_test_split"].append(f"{number} {int(member % 3 != 2)}")
            lists["bounding_boxes"].append(f"{number} 4.0 6.0 {width - 8}.0 {height - 9}.0")
            places += [f"{number} 1 {x}.0 {y}.0 1", f"{number} 2 0.0 0.0 0"]
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (root / "parts").mkdir()
    (root / "parts" / "parts.txt").write_text("1 back\n2 left eye\n")
    (root / "parts" / "part_locs.txt").write_text("\n".join(places) + "\n")


def wnid_tree(
    folder: Path, wnids: tuple[str, ...] | list[str], per_class: int, size: tuple[int, int] = (40, 30)
) -> None:
    """A folder per class with images of one gray level per class."""
    for number, wnid in enumerate(wnids):
        (folder / wnid).mkdir(parents=True)
        for index in range(per_class):
            Image.new("RGB", size, (20 + 7 * number % 200,) * 3).save(
                folder / wnid / f"{wnid}_{index}.JPEG", quality=95
            )


def waterbirds_tree(root: Path, per_group: int) -> None:
    """metadata.csv and images, every group alike in every split."""
    lines, number = ["img_id,img_filename,y,split,place,place_filename"], 0
    for split in range(3):
        for label in range(2):
            for place in range(2):
                for _ in range(per_group):
                    number += 1
                    name = f"{label + 1:03d}.Bird/{number}.jpg"
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (48, 40), (60 + 100 * label, 60 + 100 * place, 90)).save(root / name)
                    lines.append(f"{number},{name},{label},{split},{place},/o/ocean/{number}.jpg")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
