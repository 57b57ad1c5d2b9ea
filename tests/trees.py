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
