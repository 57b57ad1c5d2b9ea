"""ImageNet, -R, -Sketch and -C in their own layouts, on small trees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from everycause.data.imagenet import (
    ImageNetParams,
    among_renditions,
    class_ids,
    files,
    released_view,
    shifted_split,
    synsets,
    tables,
)
from everycause.data.imagenet import (
    open_split as imagenet_split,
)
from everycause.data.shifts import views
from everycause.data.sources import DataParams, open_split
from tests.trees import wnid_tree

PARAMS = ImageNetParams(
    image_size=16,
    resize=20,
    classes="classes.txt",
    train="train",
    test="val",
    renditions="imagenet-r",
    sketch="sketch",
    corrupted="imagenet-c",
    validation_share=0.25,
    seed=0,
    counts="any",
)
CHOSEN = [synsets()[i] for i in (1, 5, 7, 300)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "classes.txt").write_text("\n".join(reversed(CHOSEN)))
    wnid_tree(tmp_path / "train", CHOSEN, 8)
    wnid_tree(tmp_path / "val", CHOSEN, 3)
    wnid_tree(tmp_path / "imagenet-r", synsets("imagenet_r"), 1)
    wnid_tree(tmp_path / "sketch", [*CHOSEN, synsets()[9]], 2)
    for corruption in ("fog", "snow"):
        for severity in (1, 2):
            wnid_tree(tmp_path / "imagenet-c" / corruption / str(severity), CHOSEN, 3, size=(24, 24))
    return tmp_path


def test_classes_stand_in_imagenets_order_whatever_the_list_says(root: Path) -> None:
    assert (
        class_ids(root, PARAMS) == tuple(CHOSEN)
        and len(class_ids(root, PARAMS.model_copy(update={"classes": "all"}))) == 1000
    )


def test_validation_is_held_out_of_training_class_by_class_and_the_official_validation_set_is_the_test(
    root: Path,
) -> None:
    splits = {name: imagenet_split(root, name, PARAMS, 2) for name in ("train", "validation", "test")}
    assert {name: torch.bincount(split.labels).tolist() for name, split in splits.items()} == {
        "train": [6] * 4,
        "validation": [2] * 4,
        "test": [3] * 4,
    }
    assert splits["test"].all().shape == (12, 3, 16, 16) and len({split.identity for split in splits.values()}) == 3
    grays = splits["test"].all().float().mean(dim=(1, 2, 3))
    assert (grays.diff().abs() < 3).sum() == 8  # one gray level for each class of three images


def test_the_200_of_imagenet_r_are_timms(root: Path) -> None:
    import timm

    indices = (Path(timm.__file__).parent / "data" / "_info" / "imagenet_r_indices.txt").read_text().split()
    assert among_renditions(synsets()).tolist() == [int(index) for index in indices] and len(indices) == 200
    with pytest.raises(
        ValueError, match="ImageNet-R has 200 classes, and 199 of them .* are not among the 4 of this model"
    ):
        shifted_split(root, "renditions", PARAMS, 1)


def test_labels_of_a_shifted_set_are_positions_among_all_classes(root: Path) -> None:
    renditions = shifted_split(root, "renditions", PARAMS.model_copy(update={"classes": "all"}), 1)
    assert sorted(renditions.labels.tolist()) == among_renditions(synsets()).tolist()
    sketch = shifted_split(root, "sketch", PARAMS, 1)
    assert torch.bincount(sketch.labels).tolist() == [2, 2, 2, 2]  # a fifth class of the tree is none of the four
    cell = released_view(root, "fog", 2, PARAMS, 1).split
    assert cell.name == "corruptions/fog/2" and cell.read(np.array([0])).shape == (1, 3, 16, 16)


def test_views_come_in_order_with_their_answers_and_say_whether_corruptions_are_the_published_ones(
    root: Path, raw: dict
) -> None:
    raw["data"] |= {
        "source": "imagenet",
        "root": str(root),
        "imagenet": PARAMS.model_copy(update={"renditions": None}).model_dump(),
    }
    params = DataParams(**raw["data"])
    found = list(views(params, ["fog", "snow"], [1, 2], 1))
    assert [view.name for view in found] == [
        "test",
        "sketch",
        "corruptions/fog/1",
        "corruptions/fog/2",
        "corruptions/snow/1",
        "corruptions/snow/2",
    ]
    assert [view.released for view in found] == [False, False, True, True, True, True] and len(
        open_split(params, "train", 1)
    ) == 24
    raw["data"]["imagenet"] |= {"corrupted": None}
    assert not any(view.released for view in views(DataParams(**raw["data"]), ["fog"], [1], 1))


def changed(**values: object) -> ImageNetParams:
    return PARAMS.model_copy(update=values)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (changed(test="nowhere"), "nowhere' is missing: unpack the data set there"),
        (changed(test="../val"), "paths may not leave the data folder"),
        (changed(classes="gone.txt"), "gone.txt' is missing"),
        (changed(classes="x" * 5000), "xxx' is missing"),
        (changed(test="a\0b"), "is no path that can be followed"),
        (changed(test="x" * 5000), "xxx' is missing"),
        (changed(test="./train"), "data.imagenet.test is the folder of the training images"),
        (changed(classes="all"), "has no folder for the class 'n01440764' .996 of 1000 are missing."),
        (changed(test="imagenet-c"), "is not the folder of an ImageNet class"),
    ],
)
def test_a_tree_that_is_not_as_it_should_be_is_one_sentence(root: Path, params: ImageNetParams, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imagenet_split(root, "test", params, 1)


def test_counts_of_published_sets_are_verified(root: Path) -> None:
    with pytest.raises(ValueError, match="holds 200 images of 200 classes, and the published set has 30,000 of 200"):
        shifted_split(root, "renditions", changed(classes="all", counts="published"), 1)


def test_bad_lists_and_empty_folders_are_named(root: Path) -> None:
    for text, message in (("n01440764\nn99999999\n", "names 'n99999999'"), ("n01440764\nn01440764", "each once")):
        (root / "classes.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            class_ids(root, PARAMS)
    (root / "classes.txt").write_bytes(b"\xe9\xff")
    with pytest.raises(ValueError, match="data.imagenet.classes: '.*classes.txt' cannot be read"):
        class_ids(root, PARAMS)
    (root / "classes.txt").write_text("\n".join(CHOSEN))
    for file in (root / "val" / CHOSEN[2]).iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=f"{CHOSEN[2]}' is empty"):
        imagenet_split(root, "test", PARAMS, 1)
    (root / "val" / CHOSEN[2] / "half.JPEG").write_bytes(
        (root / "val" / CHOSEN[0] / f"{CHOSEN[0]}_0.JPEG").read_bytes()[:200]
    )
    with pytest.raises(ValueError, match="half.JPEG' is truncated or damaged"):
        imagenet_split(root, "test", PARAMS, 1).all()


def test_every_file_of_every_set_is_listed_and_an_edited_pixel_changes_the_identity(root: Path) -> None:
    params = changed(renditions=None)
    listed = {path.relative_to(root).parts[0] for path in files(root, params)}
    assert listed == {"train", "val", "sketch", "imagenet-c"} and tables(root, params) == [root / "classes.txt"]
    assert len(files(root, params)) == 4 * (8 + 3 + 2 + 4 * 3)
    before = imagenet_split(root, "test", params, 1).identity
    Image.new("RGB", (40, 30), (1, 2, 3)).save(root / "val" / CHOSEN[0] / f"{CHOSEN[0]}_0.JPEG")
    assert imagenet_split(root, "test", params, 1).identity != before
