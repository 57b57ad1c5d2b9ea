"""Cue conflict images: what their names say, and which of ImageNet's classes belong to the 16."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo

from everycause.data.cue_conflict import CATEGORIES, MEMBERS, cue_conflicts, cues_of
from everycause.errors import UserError
from tests.conftest import shared_data

IMAGENET = ImageNetInfo("imagenet-1k")
WORDS = {
    "airplane": "airliner",
    "bear": "bear",
    "bicycle": "bike|bicycle",
    "boat": "canoe|boat|yawl",
    "bottle": "bottle|jug",
    "car": "wagon|convertible|car",
    "cat": "cat|cougar",
    "chair": "chair|throne",
    "clock": "clock",
    "elephant": "elephant",
    "keyboard": "keyboard",
    "knife": "cleaver",
    "oven": "rotisserie",
    "truck": "truck|van|minivan|wrecker|rig",
}
"""Words of which one stands in the description of each member; birds and dogs have names of their own."""


def conflict_tree(root: Path, names: list[str], side: int = 224) -> Path:
    """Images of one gray level each."""
    for number, name in enumerate(names):
        file = root / name.split("1")[0] / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), (10 + 20 * number,) * 3).save(file)
    return root


def test_the_members_of_every_class_are_what_timm_describes_them_as() -> None:
    place = {name: number for number, name in enumerate(IMAGENET.label_names())}
    for category, words in WORDS.items():
        for wnid in MEMBERS[category]:
            described = IMAGENET.index_to_description(place[wnid]).lower()
            assert any(word in described for word in words.split("|")), f"{category}: {described}"
    for category, first, last in (("bird", 7, 146), ("dog", 151, 268)):
        assert all(first <= place[wnid] <= last for wnid in MEMBERS[category])  # ImageNet's birds, and its breeds


def test_the_members_are_as_many_as_published_and_none_belongs_to_two_classes() -> None:
    counts = {name: len(ids) for name, ids in MEMBERS.items()}
    assert counts | {"bird": 49, "dog": 109, "truck": 8, "bottle": 7, "cat": 6, "boat": 5, "bear": 4} == counts
    every = [wnid for ids in MEMBERS.values() for wnid in ids]
    assert len(every) == len(set(every)) == 207 and set(every) <= set(IMAGENET.label_names())
    assert len(CATEGORIES) == 16 and list(CATEGORIES) == sorted(CATEGORIES)


def test_a_name_says_shape_first_and_texture_second() -> None:
    assert [CATEGORIES[number] for number in cues_of(Path("cat/cat7-elephant10.png"))] == ["cat", "elephant"]


def test_images_without_a_conflict_are_left_out(tmp_path: Path) -> None:
    root = conflict_tree(tmp_path / "images", ["airplane1-bear1", "bear1-bear2", "truck1-oven3"], side=30)
    found = cue_conflicts(root, 30, None, 1)
    assert [file.stem for file in found.files] == ["airplane1-bear1", "truck1-oven3"]
    assert [CATEGORIES[number] for number in found.images.labels] == ["airplane", "truck"]
    assert [CATEGORIES[number] for number in found.textures] == ["bear", "oven"]
    assert found.images.read(np.array([1])).unique().tolist() == [50]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("airplane1", "does not say which shape and texture it shows: name it like airplane1-bicycle2.png"),
        ("airplane1_bear2", "does not say which shape and texture it shows"),
        ("airplane1-zebra2", "names the class 'zebra', which is none of the 16: airplane, bear"),
        ("bear1-bear2", "holds no image whose shape and texture are of different classes"),
    ],
)
def test_a_name_that_tells_no_conflict_is_one_sentence(tmp_path: Path, name: str, message: str) -> None:
    root = conflict_tree(tmp_path, [name])
    with pytest.raises(UserError, match=message) as caught:
        cue_conflicts(root, 224, None, 1)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_one_sentence_that_says_where_the_images_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder '.*nowhere' is missing: put the cue conflict images there"):
        cue_conflicts(tmp_path / "nowhere", 224, None, 1)


def test_the_published_set_holds_1200_conflicts_75_of_each_shape() -> None:
    found = cue_conflicts(shared_data("cue_conflict"), 224, None, 1)
    assert len(found.images) == 1200
    assert np.bincount(found.images.labels.numpy()).tolist() == [75] * 16
    assert found.images.read(np.array([0, 1199])).shape == (2, 3, 224, 224)
