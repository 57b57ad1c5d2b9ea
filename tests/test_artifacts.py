import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from everycause import artifacts
from everycause.artifacts import (
    MARKER,
    atomic_folder,
    code_fingerprint,
    import_closure,
    is_whole,
    load_tensors,
    part,
    read_json,
    save_tensors,
)
from everycause.errors import UserError
from tests.conftest import ROOT


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def files(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in visible(folder)} if folder.is_dir() else {}


def cut_short(out: Path, error: type[BaseException], resume: str | None) -> None:
    with pytest.raises(error), atomic_folder(out, resume=resume) as folder:
        with part(folder / "first") as writing:
            writing.write_text("done")
        (folder / "half").write_text("of what is made anew")
        raise error


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for error in (ValueError, KeyboardInterrupt):
        cut_short(out, error, None)
        assert visible(tmp_path) == []
    with atomic_folder(out) as folder:
        (folder / "file").write_text("new")
        assert not out.exists()
    assert files(out) == {"file": "new"} and visible(tmp_path) == ["out"]


@pytest.mark.parametrize("error", (KeyboardInterrupt, UserError, OSError))
def test_finished_parts_are_found_again_under_the_same_key_whatever_cut_the_work_short(
    tmp_path: Path, error: type[BaseException]
) -> None:
    out = tmp_path / "out"
    cut_short(out, error, "one")
    assert not out.exists()
    with atomic_folder(out, resume="one") as folder:
        assert (folder / "first").read_text() == "done" and is_whole(folder / "first")
        (folder / "half").unlink()
    assert files(out) == {"first": "done"} and visible(tmp_path) == ["out"]
    cut_short(out, error, "one")
    with atomic_folder(out, resume="another") as folder:
        assert files(folder) == {}


def test_a_mistake_before_any_work_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError), atomic_folder(tmp_path / "out", "stage", "key"):
        raise UserError("wrong")
    assert visible(tmp_path) == []


@pytest.mark.parametrize(
    ("standing", "message"),
    [
        ({MARKER: "retrain/joint/seed-0\n", "model": "weights"}, "was written by retrain/joint/seed-0, not by mine"),
        ({"photo.jpg": "pixels"}, "holds files that no stage of this project wrote"),
        (None, "is a file"),
    ],
)
def test_what_another_owner_wrote_is_not_replaced(tmp_path: Path, standing: dict | None, message: str) -> None:
    out = tmp_path / "out"
    if standing is None:
        out.write_text("precious")
    else:
        out.mkdir()
        for name, text in standing.items():
            (out / name).write_text(text)
    with pytest.raises(UserError, match=message), atomic_folder(out, "mine"):
        raise AssertionError("no work may begin")
    assert files(out) == (standing or {}) and (standing is not None or out.read_text() == "precious")


def test_the_same_owner_replaces_its_own_work(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "deep" / "out", "mine") as folder:
            (folder / "file").write_text(text)
    assert files(tmp_path / "deep" / "out") == {MARKER: "mine\n", "file": "two"}


def test_the_old_artifact_stands_until_the_new_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with atomic_folder(out) as folder:
        (folder / "file").write_text("old")
    renamed = Path.rename
    seen = []

    def watched(self: Path, target: Path) -> Path:
        result = renamed(self, target)
        seen.append({name for name in visible(tmp_path) if (tmp_path / name / "file").is_file()})
        return result

    monkeypatch.setattr(Path, "rename", watched)
    with atomic_folder(out) as folder:
        (folder / "file").write_text("new")
    assert all(seen) and files(out) == {"file": "new"} and visible(tmp_path) == ["out"]


def test_two_processes_never_write_one_place(tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = (
        "import sys; from pathlib import Path; from everycause.artifacts import atomic_folder\n"
        f"with atomic_folder(Path({str(out)!r})) as folder:\n"
        "    (folder / 'file').write_text('theirs'); print('writing', flush=True); sys.stdin.readline()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    with pytest.raises(UserError, match="another process is still writing"), atomic_folder(out):
        raise AssertionError("no work may begin")
    process.communicate("go on\n")
    assert process.returncode == 0 and files(out) == {"file": "theirs"}
    with atomic_folder(out) as folder:
        (folder / "file").write_text("mine")
    assert files(out) == {"file": "mine"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_with_path_and_room_and_spares_what_stood_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    out = tmp_path / "out"
    with atomic_folder(out) as folder:
        (folder / "file").write_bytes(bytes(3 * 2**20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1024))
    said = (
        r"'.*out.partial' could not be written whole \(it takes at least [\d.]+ MiB, and 0.00 MiB are free\): make room"
    )
    with pytest.raises(UserError, match=said), atomic_folder(out):
        raise OSError(number, os.strerror(number))
    assert files(out) == {"file": "\0" * 3 * 2**20} and visible(tmp_path) == ["out"]


def test_tensors_that_do_not_fit_name_their_file_and_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(artifacts, "save_file", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**18))
    said = r"'.*model.safetensors' could not be written whole \(it takes at least 2.00 MiB, and 0.25 MiB are"
    with pytest.raises(UserError, match=said), atomic_folder(tmp_path / "out") as folder:
        save_tensors(folder / "model.safetensors", {"x": torch.ones(2**19)}, {})
    assert visible(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_one_sentence_and_finished_parts_stay(tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="'photo.jpg' cannot be used"), atomic_folder(out, resume="key") as folder:
        with part(folder / "first") as writing:
            writing.write_text("done")
        raise OSError(number, os.strerror(number), "photo.jpg")
    with atomic_folder(out, resume="key") as folder:
        assert is_whole(folder / "first")


def test_other_errors_of_the_system_keep_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "out"):
        (tmp_path / "nowhere").read_text()


def test_a_full_disk_at_the_next_attempt_costs_no_finished_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", Path.write_text
    cut_short(out, KeyboardInterrupt, "key")

    def full(path: Path, *arguments: object) -> int:
        if path.parent == tmp_path or path.name == MARKER:
            path.open("w").close()
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *arguments)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="the disk is full"), atomic_folder(out, "mine", "key"):
        raise AssertionError("no work may begin")
    monkeypatch.setattr(Path, "write_text", real)
    with atomic_folder(out, "mine", "key") as folder:
        assert (folder / "first").read_text() == "done"


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large disk")
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "out", "mine") as folder:
            (folder / "file").write_text(text)
    assert (tmp_path / "out").is_symlink() and files(tmp_path / "large disk") == {MARKER: "mine\n", "file": "two"}


@pytest.mark.parametrize("damage", [b"", b"half", b"whole but for one bit"])
def test_a_damaged_part_is_set_aside_once_and_is_gone_when_the_folder_is_whole(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), atomic_folder(out, resume="key") as folder:
        for name in ("first", "second"):
            with part(folder / name) as writing:
                writing.write_text(f"the {name} part")
        raise KeyboardInterrupt
    (tmp_path / "out.partial" / "first").write_bytes(damage)
    with atomic_folder(out, resume="key") as folder:
        assert is_whole(folder / "second") and not is_whole(folder / "first") and not is_whole(folder / "first")
        with part(folder / "first") as writing:
            writing.write_text("again")
        assert is_whole(folder / "first")
    (said,) = caplog.messages
    assert "first is damaged (renamed to first.damaged): it is made again" in said
    assert files(out) == {"first": "again", "second": "the second part"}


def test_files_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_tensors(tmp_path / "a", {"x": torch.ones(2)}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/out", "lies within '.*file', which is a file"),
        ("artifact/deep/out", "lies within the artifact '.*artifact'"),
    ],
)
def test_nothing_is_written_into_a_file_or_another_artifact(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "file").write_text("precious")
    with atomic_folder(tmp_path / "artifact", "another") as folder:
        (folder / "model").write_text("weights")
    with pytest.raises(UserError, match=message), atomic_folder(tmp_path / place, "mine"):
        raise AssertionError("no work may begin")
    assert visible(tmp_path / "artifact") == [MARKER, "model"]


@pytest.mark.parametrize("text", ("{", "", "\x00\x01", "[1]", "3", "{}", "[" * 100_000))
def test_damaged_json_names_the_file_and_the_stage(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"summary.json is damaged .*run the stage generate_masks again"):
        read_json(tmp_path / "summary.json", "generate_masks", "asked")


def test_damaged_tensors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match="model.safetensors is not a readable artifact"):
        load_tensors(tmp_path / "model.safetensors", "train_base")
    save_file({"x": torch.ones(2)}, tmp_path / "b", metadata={"description": "3"})
    with pytest.raises(UserError, match="b is not a readable artifact"):
        load_tensors(tmp_path / "b", "train_base")
    save_tensors(tmp_path / "a", {"x": torch.ones(2).expand(3, 2)}, {"k": 1})
    assert torch.equal(load_tensors(tmp_path / "a", "nothing")[0]["x"], torch.ones(3, 2))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two modules, one of which imports the other."""
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    (tmp_path / "everycause").mkdir()
    (tmp_path / "everycause" / "first.py").write_text("from everycause.second import double\nVALUE = double(2)\n")
    (tmp_path / "everycause" / "second.py").write_text(SECOND)
    (tmp_path / "everycause" / "third.py").write_text("UNUSED = 1\n")
    return tmp_path / "everycause"


SECOND = '"""Arithmetic."""\n\n\ndef double(value):\n    """Twice the value."""\n    return 2 * value  # a product\n'


def fingerprint_of_first() -> str:
    artifacts.imported_modules.cache_clear()
    artifacts._meaning.cache_clear()
    return code_fingerprint("everycause.first")


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (SECOND.replace("# a product", "# twice"), False),
        (SECOND.replace("Twice the value.", "The value, twice."), False),
        (SECOND.replace("Arithmetic", "Sums").replace("\n\n\ndef", "\n\ndef"), False),
        (SECOND.replace("2 * value", "3 * value"), True),
        (SECOND.replace("2 * value", "value * 2"), True),
        (SECOND.replace("return", "print('a'); return"), True),
        (SECOND + "NAME = 'text'\n", True),
    ],
)
def test_only_what_code_does_is_fingerprinted(package: Path, text: str, changes: bool) -> None:
    before = fingerprint_of_first()
    (package / "second.py").write_text(text)
    assert (fingerprint_of_first() != before) is changes


def test_a_module_that_is_not_imported_does_not_count(package: Path) -> None:
    before = fingerprint_of_first()
    (package / "third.py").write_text("UNUSED = 2\n")
    assert fingerprint_of_first() == before
    (package / "first.py").write_text("from everycause import third\nVALUE = third.UNUSED\n")
    assert import_closure_of("everycause.first") == {"everycause.first", "everycause.third"}


def import_closure_of(module: str) -> set[str]:
    artifacts.imported_modules.cache_clear()
    return import_closure(module) - {"everycause"}
