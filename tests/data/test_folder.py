from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from everycause.data.images import FolderParams, class_names, decode, folder_split, shift_names
from tests.trees import digits_tree

PARAMS = FolderParams(image_size=16)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return digits_tree(tmp_path / "digits", classes=3, per_class=4)


def test_a_tree_is_read_class_by_class(tree: Path) -> None:
    split = folder_split(tree, "train", PARAMS, 2)
    assert (
        split.class_names == ("digit-0", "digit-1", "digit-2") and split.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    )
    images = split.all()
    assert images.shape == (12, 3, 16, 16) and images.dtype == torch.uint8
    assert torch.equal(split.read(np.array([7, 1])), images[[7, 1]])


def test_every_other_folder_is_a_shifted_split_with_some_of_the_classes(tree: Path) -> None:
    assert shift_names(tree) == ("inverted",)
    assert set(folder_split(tree, "inverted", PARAMS, 1).labels.tolist()) <= {0, 1, 2}


def test_a_photo_becomes_its_center_square_in_rgb(tmp_path: Path) -> None:
    gradient = np.tile(np.arange(64, dtype=np.uint8)[None] * 4, (32, 1))
    Image.fromarray(gradient).save(tmp_path / "wide.png")
    image = decode(tmp_path / "wide.png", 32)
    assert image.shape == (3, 32, 32) and torch.equal(image[0], image[1])
    assert torch.equal(image[0], torch.from_numpy(gradient[:, 16:48]))


def test_the_identity_changes_with_the_files(tree: Path) -> None:
    before = folder_split(tree, "train", PARAMS, 1).identity
    (tree / "train" / "digit-0" / "0.png").unlink()
    assert folder_split(tree, "train", PARAMS, 1).identity != before


def refusal(tree: Path, name: str = "train") -> str:
    with pytest.raises(ValueError) as caught:
        folder_split(tree, name, PARAMS, 1).all()
    return str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path, tree: Path) -> None:
    assert "nowhere" in refusal(tmp_path / "nowhere")
    (tree / "validation").rename(tree / "elsewhere")
    assert "no folder 'validation'" in refusal(tree)


def test_an_empty_class_is_named(tree: Path) -> None:
    for file in (tree / "test" / "digit-1").iterdir():
        file.unlink()
    assert "digit-1' is empty" in refusal(tree)


def test_a_class_that_is_missing_in_one_split_is_named(tree: Path) -> None:
    (tree / "test" / "digit-1").rename(tree / "test" / "digit-9")
    assert "'digit-1'" in refusal(tree) and "missing in" in refusal(tree)


def test_a_class_that_only_another_split_has_is_named(tree: Path) -> None:
    (tree / "inverted" / "digit-0").rename(tree / "inverted" / "digit-9")
    assert "'digit-9'" in refusal(tree, "inverted")


def test_a_truncated_image_is_named(tree: Path) -> None:
    file = tree / "train" / "digit-2" / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    assert "1.png' is truncated" in refusal(tree)


def test_a_file_that_is_no_image_is_named(tree: Path) -> None:
    (tree / "train" / "digit-2" / "notes.txt").write_text("not an image")
    assert "notes.txt' is not an image" in refusal(tree)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one class"):
        class_names(digits_tree(tmp_path / "one", classes=1, per_class=2))


@pytest.mark.parametrize("kind", ["CMYK", "gray", "16-bit", "animated", "palette", "transparent"])
def test_photos_of_every_kind_become_rgb_of_the_same_picture(tmp_path: Path, kind: str) -> None:
    gray = np.tile(np.linspace(0, 250, 32).astype(np.uint8), (32, 1))
    picture = Image.fromarray(np.repeat(gray[..., None], 3, axis=2))
    path = tmp_path / ("a.jpg" if kind == "CMYK" else "a.gif" if kind == "animated" else "a.png")
    match kind:
        case "CMYK":
            picture.convert("CMYK").save(path, quality=98)
        case "gray":
            picture.convert("L").save(path)
        case "16-bit":
            Image.fromarray(gray.astype(np.uint16) * 257).save(path)
        case "animated":
            picture.save(path, save_all=True, append_images=[Image.new("RGB", (32, 32))])
        case "palette":
            picture.quantize(64).save(path)
        case "transparent":
            picture.convert("RGBA").save(path)
    found = decode(path, 32)
    assert found.shape == (3, 32, 32) and (found.float().mean(dim=0) - torch.from_numpy(gray).float()).abs().mean() < 8
