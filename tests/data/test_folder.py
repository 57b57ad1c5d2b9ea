from pathlib import Path

import numpy as np
import pytest
import torch

from everycause.data.folder import FolderParams, class_names, shift_names
from everycause.data.folder import open_split as folder_split
from everycause.errors import UserError
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


def test_an_image_beside_the_class_folders_is_named_and_other_files_are_not_minded(tree: Path) -> None:
    (tree / "train" / "labels.csv").write_text("not an image")
    folder_split(tree, "train", PARAMS, 1)
    (tree / "train" / "digit-2" / "1.png").rename(tree / "train" / "1.PNG")
    assert "1.PNG' lies beside the class folders" in refusal(tree)


@pytest.mark.parametrize(("one", "other"), [("photos", "Photos"), ("caf\u00e9", "cafe\u0301")])
def test_folders_that_differ_only_by_case_or_accents_are_named(tree: Path, one: str, other: str) -> None:
    for name in (one, other):
        (tree / name).symlink_to("inverted")
    with pytest.raises(UserError, match="differ only by case or accents: rename one"):
        shift_names(tree)
    for split in ("train", "validation", "test"):
        for name in (one, other):
            (tree / split / name).symlink_to("digit-0")
    with pytest.raises(UserError, match="differ only by case or accents: rename one"):
        class_names(tree)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_that_is_the_training_images_again_is_named(tree: Path, split: str) -> None:
    (tree / split).rename(tree / ".kept")
    (tree / split).symlink_to("train")
    assert f"{split}' is the folder of the training images" in refusal(tree)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one class"):
        class_names(digits_tree(tmp_path / "one", classes=1, per_class=2))
