"""Waterbirds in its published layout, on a small tree."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from everycause.data.shifts import views
from everycause.data.sources import DataParams
from everycause.data.waterbirds import WaterbirdsParams, groups
from everycause.data.waterbirds import open_split as waterbirds_split
from tests.trees import waterbirds_tree

PARAMS = WaterbirdsParams(image_size=16, resize=18)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    waterbirds_tree(tmp_path, 3)
    return tmp_path


def test_splits_labels_and_groups_are_those_of_the_table(root: Path) -> None:
    for name in ("train", "validation", "test"):
        split = waterbirds_split(root, name, PARAMS, 1)
        assert split.class_names == ("landbird", "waterbird") and torch.bincount(split.labels).tolist() == [6, 6]
        assert groups(root, name, PARAMS).tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 and split.all().shape == (
            12,
            3,
            16,
            16,
        )


def test_the_test_view_carries_its_groups(root: Path, raw: dict) -> None:
    raw["data"] |= {"source": "waterbirds", "root": str(root), "waterbirds": PARAMS.model_dump()}
    (test,) = views(DataParams(**raw["data"]), [], [1], 1)
    assert test.groups.tolist() == groups(root, "test", PARAMS).tolist()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("img_filename,y", "img_filename,z", "lacks the column 'y'"),
        ("001.Bird/1.jpg,0", "001.Bird/1.jpg,7", "row 2 of .* has y .*7.*, which should be one of 0, 1"),
        ("001.Bird/2.jpg", "001.Bird/gone.jpg", "row 3 of .* names '001.Bird/gone.jpg', which is missing"),
        ("001.Bird/2.jpg", "../../etc/passwd", "row 3 of .*paths may not leave the data folder"),
        ("001.Bird/2.jpg", "a\0b", "row 3 of .*'a.x00b' is no path that can be followed"),
        ("001.Bird/2.jpg", "b" * 5000, "row 3 of .* names 'bbb.*', which is missing"),
        ("001.Bird/2.jpg", "./001.Bird/1.jpg", "row 3 of .* names './001.Bird/1.jpg', which row 2 names already"),
    ],
)
def test_a_table_that_is_not_as_published_is_one_sentence(root: Path, old: str, new: str, message: str) -> None:
    text = (root / "metadata.csv").read_text()
    (root / "metadata.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        waterbirds_split(root, "train", PARAMS, 1)


def test_a_missing_or_empty_table_is_named(root: Path) -> None:
    (root / "metadata.csv").write_text("")
    with pytest.raises(ValueError, match="is not a readable table"):
        waterbirds_split(root, "train", PARAMS, 1)
    (root / "metadata.csv").unlink()
    with pytest.raises(ValueError, match="metadata.csv' is missing"):
        waterbirds_split(root, "train", PARAMS, 1)


def test_files_that_are_named_twice_are_refused(root: Path) -> None:
    lines = (root / "metadata.csv").read_text().splitlines()
    (root / "metadata.csv").write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(
        ValueError, match=f"row {len(lines) + 1} of .* names '001.Bird/1.jpg', which row 2 names already"
    ):
        waterbirds_split(root, "train", PARAMS, 1)
    other = lines[1].split(",")
    other[3] = "2"
    (root / "metadata.csv").write_text("\n".join([*lines, ",".join(other)]))
    with pytest.raises(ValueError, match="which row 2 names in another split"):
        waterbirds_split(root, "train", PARAMS, 1)


def test_a_link_to_the_image_of_another_row_is_refused(root: Path) -> None:
    (root / "001.Bird" / "2.jpg").unlink()
    (root / "001.Bird" / "2.jpg").symlink_to("1.jpg")
    with pytest.raises(ValueError, match="row 3 of .* names '001.Bird/2.jpg', which row 2 names already"):
        waterbirds_split(root, "train", PARAMS, 1)


@pytest.mark.parametrize(("split", "number"), [("train", 0), ("validation", 1), ("test", 2)])
def test_a_class_that_a_split_lacks_is_named(root: Path, split: str, number: int) -> None:
    lines = (root / "metadata.csv").read_text().splitlines()
    kept = [line for line in lines if line.split(",")[2:4] != ["1", str(number)]]
    (root / "metadata.csv").write_text("\n".join(kept))
    with pytest.raises(ValueError, match=f"metadata.csv' names no waterbird in the split '{split}'"):
        waterbirds_split(root, "train", PARAMS, 1)


def test_an_edited_pixel_changes_the_identity_of_its_split_alone(root: Path) -> None:
    before = {name: waterbirds_split(root, name, PARAMS, 1).identity for name in ("train", "test")}
    file = root / "001.Bird" / "1.jpg"
    Image.new("RGB", (48, 40), (1, 2, 3)).save(file)
    after = {name: waterbirds_split(root, name, PARAMS, 1).identity for name in ("train", "test")}
    assert after["train"] != before["train"] and after["test"] == before["test"]
