"""A folder of photographs, divided: shares, near-duplicates, determinism, bad input."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from everycause.__main__ import main
from everycause.data.partition import SPLITS, hashed, near_duplicates, partition
from everycause.errors import UserError


def scene(seed: int, side: int = 48) -> Image.Image:
    """A smooth picture, another for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 20 scenes; every fifth has a smaller twin and a recompressed one."""
    for label, name in enumerate(("cat", "dog")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(20):
            made = scene(100 * label + number)
            made.save(folder / f"{number:02d}.png")
            if number % 5 == 0:
                made.resize((32, 32)).save(folder / f"{number:02d}-small.png")
                made.save(folder / f"{number:02d}-again.jpg", quality=60)
    return tmp_path / "photos"


def places(root: Path) -> dict[str, str]:
    return {f"{file.parent.name}/{file.name}": file.parts[-3] for file in sorted(root.glob("*/*/*"))}


def test_every_class_is_divided_in_the_asked_shares_and_nothing_is_lost(photos: Path, tmp_path: Path) -> None:
    counts = partition(photos, tmp_path / "data", 0.2, 0.2, 0)
    found = places(tmp_path / "data")
    assert set(found) == {f"{file.parent.name}/{file.name}" for file in photos.glob("*/*")}
    assert counts == {split: sum(one == split for one in found.values()) for split in SPLITS}
    for name in ("cat", "dog"):
        here = [split for file, split in found.items() if file.startswith(name)]
        assert abs(here.count("test") / len(here) - 0.2) < 0.1 and abs(here.count("validation") / len(here) - 0.2) < 0.1
    for file in (tmp_path / "data").glob("*/*/*"):
        assert file.read_bytes() == (photos / file.parent.name / file.name).read_bytes()


def test_near_duplicates_stay_together(photos: Path, tmp_path: Path) -> None:
    partition(photos, tmp_path / "data", 0.2, 0.2, 0)
    found = places(tmp_path / "data")
    for file, split in found.items():
        stem = file.split("/")[1].split(".")[0].split("-")[0]
        twins = {found[other] for other in found if other.startswith(f"{file.split('/')[0]}/{stem}")}
        assert twins == {split}, file


def test_real_photographs_are_told_apart_and_their_twins_are_not(tmp_path: Path) -> None:
    files = []
    for number, array in enumerate(load_sample_images().images):
        for name, made in {
            "whole.png": Image.fromarray(array),
            "small.png": Image.fromarray(array).resize((120, 80)),
            "again.jpg": Image.fromarray(array),
        }.items():
            files.append(tmp_path / f"{number}-{name}")
            made.save(files[-1])
    groups = near_duplicates(np.stack([hashed(file) for file in files]))
    assert len(set(groups[:3])) == len(set(groups[3:])) == 1 and groups[0] != groups[3]


def test_a_chain_of_near_duplicates_is_one_group() -> None:
    hashes = np.zeros((4, 256), dtype=bool)
    hashes[1, :60] = hashes[2, :120] = True
    hashes[3, 120:] = True
    groups = near_duplicates(hashes)
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_the_seed_alone_decides(photos: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        partition(photos, tmp_path / name, 0.2, 0.2, seed)
    assert places(tmp_path / "a") == places(tmp_path / "b") != places(tmp_path / "c")


def test_three_images_are_enough(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 50)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            scene(first + number).save(tmp_path / "photos" / name / f"{number}.png")
    assert partition(tmp_path / "photos", tmp_path / "data", 0.1, 0.1, 0) == dict.fromkeys(SPLITS, 2)


def test_the_command_says_how_many_each_split_got(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["split", str(photos), str(tmp_path / "data")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'data'}: ")
    assert main(["split", str(photos), str(tmp_path / "data")]) == 1
    assert "holds 'train' already" in capsys.readouterr().err


def test_splits_go_into_a_folder_that_exists_and_touch_nothing_in_it(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text("mine")
    partition(photos, tmp_path / "data", 0.2, 0.2, 0)
    assert {entry.name for entry in (tmp_path / "data").iterdir()} == {*SPLITS, "README.md"}
    assert (tmp_path / "data" / "README.md").read_text() == "mine"


def test_folders_within_each_other_and_files_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lies in .*, whose images it would be made of"):
        partition(photos, photos / "data", 0.2, 0.2, 0)
    with pytest.raises(UserError, match="would be taken for a shifted split"):
        partition(photos, tmp_path, 0.2, 0.2, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: name a folder"):
        partition(photos, tmp_path / "file", 0.2, 0.2, 0)


def spoiled(photos: Path, mistake: str) -> tuple[Path, float, str]:
    """The folder with a mistake; the validation share; what is said."""
    match mistake:
        case "two classes":
            (photos / "dog" / "copy.png").write_bytes((photos / "cat" / "01.png").read_bytes())
            return photos, 0.2, "cat/01.png' and .*dog/copy.png' show the same picture in two classes"
        case "few":
            (photos / "owl").mkdir()
            for number in range(2):
                scene(900 + number).save(photos / "owl" / f"{number}.png")
            return photos, 0.2, "the class 'owl' has 2 different images"
        case "broken":
            (photos / "cat" / "broken.jpg").write_bytes(b"no image")
            return photos, 0.2, "broken.jpg"
        case "shares":
            return photos, 0.9, "shares of 0.9 and 0.2"
    return photos.parent / "nowhere", 0.2, "nowhere"


@pytest.mark.parametrize("mistake", ["two classes", "few", "broken", "shares", "missing"])
def test_a_mistake_is_one_sentence_and_leaves_nothing(photos: Path, tmp_path: Path, mistake: str) -> None:
    folder, share, sentence = spoiled(photos, mistake)
    with pytest.raises(UserError, match=sentence) as caught:
        partition(folder, tmp_path / "data", share, 0.2, 0)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists() and not (tmp_path / "data.partial").exists()
