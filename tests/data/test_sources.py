"""The section `data` of params.yaml, the register of sources, and the check of all files before any work."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from everycause.data import digests, sources
from everycause.data.imagenet import synsets
from everycause.data.images import decoded
from everycause.data.shifts import views
from everycause.data.sources import SOURCES, DataParams, check, files, open_split, renderer
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.params import Section
from tests.trees import cub_tree, digits_tree, waterbirds_tree, wnid_tree


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "DIGESTS", tmp_path / "cache" / "digests.sqlite")
    monkeypatch.setattr(digests, "SETTLED_NS", 0)


@pytest.fixture
def photos(tmp_path: Path) -> DataParams:
    root = digits_tree(tmp_path / "photos", classes=2, per_class=3)
    return DataParams(source="folder", root=str(root), memory_mib=10, folder={"image_size": 16})


def problem(**raw: object) -> dict:
    with pytest.raises(ValidationError) as caught:
        DataParams(**raw)
    (found,) = caught.value.errors()
    return found


def test_only_the_section_of_the_source_is_needed_and_dumped(raw: dict) -> None:
    alone = {key: raw["data"][key] for key in ("source", "root", "memory_mib", "codebirds")}
    params = DataParams(**alone)
    assert params.model_dump() == alone == DataParams(**raw["data"]).model_dump()
    assert params.folder is None and params.codebirds is params.section and params.image_size == 32
    assert DataParams(**params.model_dump()) == params


@pytest.mark.parametrize(
    ("section", "change", "place", "kind"),
    [
        ("codebirds", {"order": 99}, ("codebirds", "order"), "less_than_equal"),
        ("codebirds", {"odor": 1}, ("codebirds", "odor"), "extra_forbidden"),
        ("folder", {"image_size": "large"}, ("folder", "image_size"), "int_type"),
        (None, {"surprise": 1}, ("surprise",), "extra_forbidden"),
        (None, {"source": "photos"}, ("source",), "literal_error"),
        (None, {"memory_mib": 10**12}, ("memory_mib",), "less_than_equal"),
    ],
)
def test_mistakes_are_found_at_their_path_in_sections_of_other_sources_too(
    raw: dict, section: str | None, change: dict, place: tuple, kind: str
) -> None:
    data = raw["data"] | {"folder": {"image_size": 32}}
    data |= {section: data[section] | change} if section else change
    found = problem(**data)
    assert found["loc"] == place and found["type"] == kind


def test_a_missing_section_is_found_at_its_path() -> None:
    found = problem(source="cub", root="data", memory_mib=1)
    assert found["loc"] == ("cub",) and found["type"] == "missing"


def test_readers_are_imported_when_they_are_asked_for() -> None:
    code = "import sys; import everycause.data.sources as s; print([m for m in s.SOURCES.values() if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(sources.__file__).parents[2]
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_new_source_is_one_module_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoiseParams(Section):
        image_size: int

    def open_noise(root: Path, name: str, params: NoiseParams, threads: int) -> Split:
        images = torch.randint(0, 256, (4, 3, params.image_size, params.image_size), dtype=torch.uint8)
        return Split(name, torch.arange(4) % 2, ("a", "b"), params.image_size, lambda index: images[index], name)

    module = ModuleType("noise_reader")
    module.PARAMS, module.open_split, module.files = NoiseParams, open_noise, lambda root, params: []
    monkeypatch.setitem(sys.modules, "noise_reader", module)
    monkeypatch.setitem(SOURCES, "noise", "noise_reader")
    params = DataParams(source="noise", root="nowhere", memory_mib=1, noise={"image_size": 8})
    assert params.noise.image_size == params.image_size == 8 and params.code is None and files(params) == []
    assert len(open_split(params, "train", 1)) == 4
    assert [view.name for view in views(params, ["contrast"], [2], 1)] == ["test", "corruptions/contrast/2"]
    check(params, 1)


def test_rendered_birds_have_a_renderer_and_no_files(data_params: DataParams, photos: DataParams) -> None:
    assert files(data_params) == [] and renderer(data_params, 1).settings.image_size == 32
    with pytest.raises(UserError, match="data.source is 'folder', and only rendered images have known parts"):
        renderer(photos, 1)


def test_the_listed_files_are_those_of_all_splits(photos: DataParams, tmp_path: Path) -> None:
    root = Path(photos.root)
    assert sorted(files(photos)) == sorted(root.rglob("*.png"))
    (root / "README.md").write_text("beside the splits")
    (root / "test" / ".DS_Store").write_text("hidden")
    assert sorted(files(photos)) == sorted(root.rglob("*.png"))
    waterbirds_tree(tmp_path / "waterbirds", 2)
    birds = DataParams(
        source="waterbirds",
        root=str(tmp_path / "waterbirds"),
        memory_mib=0,
        waterbirds={"image_size": 16, "resize": 18},
    )
    assert sorted(files(birds)) == sorted(path for path in (tmp_path / "waterbirds").rglob("*") if path.is_file())
    cub_tree(tmp_path / "cub", 2, 12)
    cub = {"image_size": 16, "crop": "whole", "validation_share": 0.2, "seed": 0}
    params = DataParams(source="cub", root=str(tmp_path / "cub"), memory_mib=0, cub=cub)
    assert sorted(files(params)) == sorted(path for path in (tmp_path / "cub").rglob("*") if path.is_file())
    check(birds, 1), check(params, 1)


def cut(root: Path) -> None:
    file = root / "inverted" / "digit-1" / "0.png"
    file.write_bytes(file.read_bytes()[:80])


def stray(root: Path) -> None:
    (root / "annotations" / "xml").mkdir(parents=True)
    (root / "annotations" / "xml" / "0.xml").write_text("<xml/>")


def stray_files(root: Path) -> None:
    (root / "leftovers").mkdir()
    (root / "leftovers" / "export.json").write_text("{}")


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (cut, "inverted/digit-1/0.png' is truncated or damaged"),
        (stray, "the class 'xml' is in .*annotations' but not in .*; if 'annotations' is no test split, move it out"),
        (stray_files, "leftovers' has no class folders: .* move it out of the data folder if it is no test split"),
        (lambda root: (root / "inverted").rename(root / "corruptions"), "corruptions' cannot be a shifted test split"),
        (lambda root: (root / "inverted").rename(root / "Test"), "Test' cannot be a shifted test split"),
        (lambda root: (root / "train" / "Digit-1").symlink_to(root / "train" / "digit-1"), "differ only by case"),
        (lambda root: (root / "more").symlink_to(root / "nowhere"), "symbolic link '.*more' to '.*nowhere' is broken"),
        (lambda root: (root / "test" / "digit-0" / "caf\udce9.png").write_bytes(b""), "is no UTF-8"),
        (lambda root: (root / "test" / "digit-0" / "notes.txt").write_text("no image"), "notes.txt' is not an image"),
    ],
)
def test_data_that_would_end_the_run_in_its_last_stage_are_refused_before(
    photos: DataParams, break_: Callable[[Path], object], message: str
) -> None:
    check(photos, 1)
    break_(Path(photos.root))
    with pytest.raises(UserError, match=message) as caught:
        check(photos, 2)
    assert "\n" not in str(caught.value)


def test_the_check_opens_every_file_once(photos: DataParams, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(sources, "check_decodable", opened.append)
    check(photos, 1)
    assert sorted(opened) == sorted(files(photos))
    check(photos, 1)
    assert len(opened) == len(files(photos))


def test_the_number_of_further_broken_files_is_told(photos: DataParams) -> None:
    for file in files(photos)[:3]:
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"is not an image .* \(2 more files cannot be read either\)"):
        check(photos, 1)


def test_a_file_that_could_not_be_read_once_is_opened_again(
    photos: DataParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(file: Path) -> None:
        raise UserError(f"'{file}' could not be read (Input/output error): check the drive and run this again")

    with monkeypatch.context() as broken:
        broken.setattr(sources, "check_decodable", failing)
        with pytest.raises(UserError, match="check the drive"):
            check(photos, 1)
    check(photos, 1)


def test_a_published_set_of_corruptions_must_have_those_that_will_be_evaluated(tmp_path: Path) -> None:
    wnids = synsets()[:2]
    (tmp_path / "classes.txt").write_text("\n".join(wnids))
    for folder, count in (("train", 4), ("val", 1), ("c/fog/1", 1)):
        wnid_tree(tmp_path / folder, wnids, count)
    section = {"image_size": 16, "resize": 20, "classes": "classes.txt", "train": "train", "test": "val"}
    section |= {"renditions": None, "sketch": None, "corrupted": "c", "validation_share": 0.25, "seed": 0}
    params = DataParams(source="imagenet", root=str(tmp_path), memory_mib=0, imagenet=section | {"counts": "any"})
    check(params, 1, [("fog", 1)])
    with pytest.raises(UserError, match="c/fog/3' is missing"):
        check(params, 1, [("fog", 1), ("fog", 3)])


@pytest.mark.parametrize("absolute", [False, True])
def test_a_copy_of_the_repository_without_its_photos_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc"
    (copy / "data").mkdir(parents=True)
    monkeypatch.chdir(copy)
    root = str(copy / "data") if absolute else "data"
    params = DataParams(source="folder", root=root, memory_mib=0, folder={"image_size": 16})
    with pytest.raises(UserError, match="has no folder 'train'") as caught:
        check(params, 1)
    assert ("`dvc exp run --temp` and `--queue` work in a copy" in str(caught.value)) == (not absolute)


@pytest.mark.parametrize("level", ["split", "class", "subfolder", "file"])
def test_changes_behind_links_change_the_identity(photos: DataParams, tmp_path: Path, level: str) -> None:
    """DVC hashes a link itself; the identity of a split is that of the images behind it."""
    root = Path(photos.root)
    moved = {
        "split": root / "train",
        "class": root / "train" / "digit-0",
        "subfolder": root / "train" / "digit-0" / "more",
        "file": root / "train" / "digit-0" / "0.png",
    }[level]
    if level == "subfolder":
        moved.mkdir()
        (root / "train" / "digit-0" / "0.png").rename(moved / "0.png")
    outside = tmp_path / "outside"
    moved.rename(outside)
    moved.symlink_to(outside)
    before = open_split(photos, "train", 1)
    assert len(before) == 6
    file = outside if level == "file" else next(iter(sorted(outside.rglob("0.png"))))
    pixels = np.asarray(decoded(file))
    Image.fromarray(255 - pixels).save(file, "PNG")
    after = open_split(photos, "train", 1)
    assert after.identity != before.identity and not torch.equal(after.all(), before.all())
    if level != "file":
        file.unlink()
        (outside / ("digit-0" if level == "split" else "") / "1.png").unlink(missing_ok=True)
        assert open_split(photos, "train", 1).identity != after.identity


def test_hidden_files_leave_every_identity_as_it_is(photos: DataParams) -> None:
    before = [open_split(photos, name, 1).identity for name in ("train", "test")]
    for folder in (Path(photos.root), Path(photos.root) / "train", Path(photos.root) / "test" / "digit-0"):
        (folder / ".DS_Store").write_text("of a file manager")
        (folder / ".thumbnails").mkdir()
        (folder / ".thumbnails" / "0.png").write_text("of a file manager")
    assert [open_split(photos, name, 1).identity for name in ("train", "test")] == before
    check(photos, 1)
