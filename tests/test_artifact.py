from pathlib import Path

import pytest

from everycause.artifacts import atomic_folder


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.is_dir() else {}


def cut_short(out: Path, error: type[BaseException], resume: str | None) -> None:
    with pytest.raises(error), atomic_folder(out, resume) as folder:
        (folder / "first").write_text("done")
        raise error


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for error in (ValueError, KeyboardInterrupt):
        cut_short(out, error, None)
        assert list(tmp_path.iterdir()) == []
    with atomic_folder(out) as folder:
        (folder / "file").write_text("new")
        assert not out.exists()
    assert files(out) == {"file": "new"} and list(tmp_path.iterdir()) == [out]


def test_what_was_finished_is_found_again_under_the_same_key_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    cut_short(out, KeyboardInterrupt, "one")
    assert not out.exists()
    with atomic_folder(out, "one") as folder:
        assert files(folder) == {"first": "done"}
    assert list(tmp_path.iterdir()) == [out]
    cut_short(out, KeyboardInterrupt, "one")
    with atomic_folder(out, "another") as folder:
        assert files(folder) == {}


def test_a_users_mistake_leaves_nothing_to_go_on_with(tmp_path: Path) -> None:
    cut_short(tmp_path / "out", ValueError, "one")
    assert list(tmp_path.iterdir()) == []
