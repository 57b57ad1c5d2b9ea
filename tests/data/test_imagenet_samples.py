"""The sample photographs of ImageNet: read in order, for explanations alone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everycause.data.imagenet import synsets
from everycause.data.imagenet_samples import PARAMS, files, open_split
from everycause.data.sources import DataParams, check
from everycause.errors import UserError
from everycause.params import read
from tests.conftest import ROOT, shared_data


def samples(root: Path, classes: list[int], side: int = 40) -> Path:
    """A photograph of noise for each class."""
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for label in classes:
        pixels = generator.integers(0, 255, (side, side + 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{synsets()[label]}_name_of_it.png")
    return root


def test_photographs_come_in_the_order_of_their_names_with_the_class_that_they_name(tmp_path: Path) -> None:
    split = open_split(samples(tmp_path, [900, 3, 41]), "validation", PARAMS(image_size=32), 1)
    assert split.labels.tolist() == [3, 41, 900] and split.class_names == synsets()
    assert split.all().shape == (3, 3, 32, 32)


def test_the_identity_changes_with_a_photograph(tmp_path: Path) -> None:
    params = PARAMS(image_size=32)
    before = open_split(samples(tmp_path, [3, 4]), "validation", params, 1).identity
    assert open_split(tmp_path, "validation", params, 1).identity == before
    Image.new("RGB", (40, 40)).save(next(tmp_path.iterdir()))
    assert open_split(tmp_path, "validation", params, 1).identity != before


@pytest.mark.parametrize("name", ["train", "test"])
def test_nothing_is_trained_or_tested_on_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="are explained, and nothing is trained or tested on them: run make imagenet-"):
        open_split(samples(tmp_path, [3]), name, PARAMS(image_size=32), 1)


def test_dvc_repro_on_the_profile_stops_before_any_work() -> None:
    data: DataParams = read("data", path=ROOT / "profiles" / "imagenet-samples.yaml").data
    with pytest.raises(UserError, match="run make imagenet-samples instead of dvc repro"):
        check(data, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photo.png", "begins with no WordNet id of ImageNet's 1,000 classes"),
        ("n00000000_thing.png", "begins with no WordNet id of ImageNet's 1,000 classes"),
        (None, "is empty: put photographs there"),
    ],
)
def test_a_photograph_of_no_class_is_one_sentence(tmp_path: Path, name: str | None, message: str) -> None:
    if name:
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        files(tmp_path, PARAMS(image_size=32))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="which is no folder"):
        files(tmp_path / "nowhere", PARAMS(image_size=32))


def test_the_shared_sample_has_a_photograph_of_every_class() -> None:
    split = open_split(shared_data("imagenet_samples") / "images", "validation", PARAMS(image_size=224), 1)
    assert sorted(split.labels.tolist()) == list(range(1000))
    assert split.read(np.array([0, 999])).shape == (2, 3, 224, 224)
