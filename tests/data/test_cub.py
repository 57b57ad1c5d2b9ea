"""The loader of CUB-200-2011, on a small tree in the published layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from everycause.data.cub import Cub, CubParams
from everycause.data.cub import open_split as cub_split
from everycause.data.shifts import views
from everycause.data.sources import DataParams, open_split
from tests.trees import cub_tree

PARAMS = CubParams(image_size=16, crop="whole", validation_share=0.25, seed=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    cub_tree(tmp_path / "CUB_200_2011", classes=3, per_class=12)
    return tmp_path / "CUB_200_2011"


def test_the_official_split_is_kept_and_validation_is_taken_evenly_from_training(root: Path) -> None:
    splits = {name: cub_split(root, name, PARAMS, 2) for name in ("train", "validation", "test")}
    assert {name: torch.bincount(split.labels).tolist() for name, split in splits.items()} == {
        "train": [6, 6, 6],
        "validation": [2, 2, 2],
        "test": [4, 4, 4],
    }
    assert splits["train"].class_names == ("001.Bird_0", "002.Bird_1", "003.Bird_2")
    birds = Cub.open(root)
    members = {name: set(birds.members(name, PARAMS).tolist()) for name in splits}
    assert (
        members["train"] | members["validation"] == set(birds.is_train.nonzero()[0].tolist())
        and not members["train"] & members["validation"]
    )
    other = PARAMS.model_copy(update={"seed": 1})
    assert (
        set(birds.members("validation", other).tolist()) != members["validation"]
        and set(birds.members("test", other).tolist()) == members["test"]
    )
    assert len({split.identity for split in splits.values()}) == 3


def test_images_are_read_in_any_order_and_a_box_can_be_cut_out(root: Path) -> None:
    split = cub_split(root, "test", PARAMS, 2)
    assert split.all().shape == (12, 3, 16, 16) and torch.equal(split.read(np.array([5, 2])), split.all()[[5, 2]])
    boxed = cub_split(root, "test", PARAMS.model_copy(update={"crop": "box"}), 1)
    birds = Cub.open(root)
    index = int(birds.members("test", PARAMS)[0])
    left, top, width, height = birds.boxes[index].astype(int)
    shown = np.asarray(Image.open(birds.files[index]).convert("RGB"))[top : top + height, left : left + width]
    assert abs(float(boxed.all()[0].float().mean()) - shown.mean()) < 6


@pytest.mark.parametrize("crop", ["whole", "box"])
def test_parts_lie_where_the_pixels_are_after_resizing(root: Path, crop: str) -> None:
    birds, params = Cub.open(root), PARAMS.model_copy(update={"crop": crop, "image_size": 32})
    assert birds.part_names == ("back", "left eye")
    x, y, visible = birds.parts_in_image(0, params)[0]
    assert visible == 1 and birds.parts_in_image(0, params)[1, 2] == 0
    red = birds.decode(0, params)[:, round(y), round(x)]
    assert red[0] > 150 and red[1] < 110, red  # the tree paints a red dot at the first part


def test_it_is_opened_through_params_and_has_corruptions_as_its_shifts(root: Path, raw: dict) -> None:
    raw["data"] |= {"source": "cub", "root": str(root), "cub": PARAMS.model_dump()}
    params = DataParams(**raw["data"])
    assert params.image_size == 16 and params.code is None and len(open_split(params, "train", 1)) == 18
    assert [view.name for view in views(params, ["gaussian_noise"], [1, 2], 1)] == [
        "test",
        "corruptions/gaussian_noise/1",
        "corruptions/gaussian_noise/2",
    ]


def replaced(root: Path, file: str, old: str, new: str) -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("images.txt", "001.Bird_0/bird_0.jpg", "../../secret.jpg", "paths may not leave the data folder"),
        ("images.txt", "001.Bird_0/bird_0.jpg", "/etc/passwd", "paths may not leave the data folder"),
        ("images.txt", "001.Bird_0/bird_0.jpg", "001.Bird_0/gone.jpg", "gone.jpg', is missing"),
        (
            "images.txt",
            "1 001.Bird_0/bird_0.jpg",
            "001.Bird_0/bird_0.jpg",
            "line 1 of .*images.txt' should hold a number and 1 more column",
        ),
        ("images.txt", "2 001.", "1 001.", "line 2 of .*images.txt' repeats number 1"),
        ("images.txt", "bird_1.jpg", "bird_0.jpg", "images 1 and 2 of .*images.txt' are one file"),
        ("images.txt", "bird_1.jpg", "../001.Bird_0/bird_0.jpg", "images 1 and 2 of .*images.txt' are one file"),
        ("images.txt", "bird_1.jpg", "b\0.jpg", "image 2 of images.txt: .* is no path that can be followed"),
        ("images.txt", "2 001.", "9" * 5000 + " 001.", "line 2 of .*images.txt' should hold a number"),
        ("classes.txt", "2 002.Bird_1", "2 001.Bird_0", "classes.txt' names a class twice"),
        ("train_test_split.txt", "1 1", "1 2", "holds '2' where 0 or 1 should be"),
        ("bounding_boxes.txt", "1 4.0", "1 nan", "holds 'nan' where a number should be"),
        ("bounding_boxes.txt", "1 4.0 6.0 52.0", "1 4.0 6.0 -52.0", "has an empty box for image 1"),
        ("parts/parts.txt", "1 back", "one back", "parts.txt' holds 'one' where a whole number should be"),
        ("image_class_labels.txt", "1 1", "1 9", "image 1 has a class that is not in"),
        ("image_class_labels.txt", "1 1\n", "", "image 1 is in only one of"),
        ("train_test_split.txt", "1 1", "1 yes", "holds 'yes' where 0 or 1 should be"),
        ("bounding_boxes.txt", "1 4.0", "1 wide", "holds 'wide' where a number should be"),
        ("classes.txt", "2 002", "7 002", "does not number its classes"),
        ("parts/part_locs.txt", "1 1 ", "99 1 ", "names image 99 and part 1"),
        (
            "parts/part_locs.txt",
            "1 1 ",
            "1 ",
            "line 1 of .*part_locs.txt' should hold image, part, x, y and visibility",
        ),
    ],
)
def test_lists_that_are_not_as_published_are_one_sentence(
    root: Path, file: str, old: str, new: str, message: str
) -> None:
    replaced(root, file, old, new)
    with pytest.raises(ValueError, match=message):
        Cub.open(root)


@pytest.mark.parametrize(
    "file", ["images.txt", "classes.txt", "bounding_boxes.txt", "parts/parts.txt", "parts/part_locs.txt"]
)
def test_a_missing_list_is_named(root: Path, file: str) -> None:
    (root / file).unlink()
    with pytest.raises(ValueError, match=f"{file}' is missing"):
        Cub.open(root)


def test_a_missing_folder_a_symlink_out_and_a_class_without_images_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="point it at CUB_200_2011"):
        Cub.open(tmp_path / "nowhere")
    outside = tmp_path / "outside.jpg"
    (root / "images" / "001.Bird_0" / "bird_0.jpg").rename(outside)
    (root / "images" / "001.Bird_0" / "bird_0.jpg").symlink_to(outside)
    with pytest.raises(ValueError, match="may not leave"):
        Cub.open(root)
    cub_tree(tmp_path / "again", classes=2, per_class=12)
    lines = (tmp_path / "again" / "train_test_split.txt").read_text().splitlines()
    (tmp_path / "again" / "train_test_split.txt").write_text("\n".join(line[:-1] + "1" for line in lines))
    with pytest.raises(ValueError, match="the class '001.Bird_0' has no test image"):
        cub_split(tmp_path / "again", "test", PARAMS, 1)
    (tmp_path / "again" / "train_test_split.txt").write_text("\n".join(line[:-1] + "0" for line in lines))
    with pytest.raises(ValueError, match="has 0 official training images"):
        cub_split(tmp_path / "again", "train", PARAMS, 1)


@pytest.mark.parametrize("box", ["4000 6 52 31", "4 6 1e9 31"])
def test_a_box_that_does_not_lie_in_its_photograph_is_named(root: Path, box: str) -> None:
    replaced(root, "bounding_boxes.txt", "1 4.0 6.0 52.0 31.0", f"1 {box}")
    params = PARAMS.model_copy(update={"crop": "box"})
    with pytest.raises(ValueError, match="box of '.*bird_0.jpg' in '.*bounding_boxes.txt' does not lie in its 60 × 40"):
        Cub.open(root).decode(0, params)


def test_an_edited_pixel_changes_the_identity(root: Path) -> None:
    before = cub_split(root, "test", PARAMS, 1).identity
    Image.new("RGB", (60, 40), (1, 2, 3)).save(root / "images" / "001.Bird_0" / "bird_2.jpg")
    assert cub_split(root, "test", PARAMS, 1).identity != before
