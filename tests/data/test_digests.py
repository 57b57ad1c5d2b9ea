"""Content is hashed once, and again whenever it changed."""

import os
from pathlib import Path

import pytest

from everycause.data import digests
from everycause.data.digests import content_digest, remembered
from everycause.errors import UserError


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "DIGESTS", tmp_path / "cache" / "digests.sqlite")
    monkeypatch.setattr(digests, "SETTLED_NS", 0)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in ("a", "b", "c")]
    for file in found:
        file.write_text(f"content of {file.name}")
    return found


def test_the_digest_depends_on_paths_and_contents_and_not_on_order(files: list[Path], tmp_path: Path) -> None:
    first = content_digest(files)
    assert content_digest(files[::-1]) == first and content_digest(files[:2]) != first
    relative = content_digest(files, tmp_path)
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in files:
        (moved / file.name).write_bytes(file.read_bytes())
    assert content_digest([moved / file.name for file in files], moved) == relative
    texts = [file.read_text() for file in files]
    files[0].write_text(texts[1]), files[1].write_text(texts[0])
    assert content_digest(files) != first


def test_a_file_of_the_same_size_and_time_but_other_content_is_noticed(files: list[Path]) -> None:
    first, found = content_digest(files), files[0].stat()
    files[0].write_text(files[0].read_text().upper())
    os.utime(files[0], ns=(found.st_atime_ns, found.st_mtime_ns))
    assert files[0].stat().st_size == found.st_size and content_digest(files) != first


def test_files_behind_a_link_are_hashed(files: list[Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(files[0])
    first = content_digest([link])
    files[0].write_text("something else")
    assert content_digest([link]) != first


def test_unchanged_files_are_asked_about_once(files: list[Path]) -> None:
    asked: list[Path] = []

    def answer(file: Path) -> str:
        asked.append(file)
        return file.name.upper()

    for _ in range(2):
        assert remembered("name", files, answer) == ["A", "B", "C"]
    assert sorted(asked) == files
    files[1].write_text("changed")
    remembered("name", files, answer)
    assert asked[3:] == [files[1]]
    assert remembered("other question", files, lambda file: "yes") == ["yes"] * 3


def test_an_answer_that_need_not_last_is_asked_for_again(files: list[Path]) -> None:
    """A drive that failed once may work the next time."""
    answers = iter(["broken", "", "", ""])
    for expected in (["broken", "", ""], ["", "", ""], ["", "", ""]):
        found = remembered("fault", files, lambda file: next(answers), 1, lasting=lambda fault: not fault)
        assert found == expected


def test_files_that_may_still_change_are_not_remembered(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SETTLED_NS", 10**18)
    content_digest(files)
    assert not digests.DIGESTS.exists()


@pytest.mark.parametrize("content", [b"no database", b""])
def test_a_damaged_store_costs_a_second_reading_and_nothing_else(files: list[Path], content: bytes) -> None:
    first = content_digest(files)
    digests.DIGESTS.write_bytes(content)
    assert content_digest(files) == first == content_digest(files)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone' is missing or cannot be read"):
        content_digest([tmp_path / "gone"])


def test_nothing_has_a_digest() -> None:
    assert content_digest([]) == content_digest([])
