"""Files: which there are, through symbolic links, and their identity by content.

Hashes are kept in `.cache/digests.sqlite`, so that unchanged files are read once. A file counts as unchanged while its
path, size, inode and times stay the same. The time of the last change of the inode is among them, because it cannot be
set: a copy with the old modification time is noticed.
"""

import hashlib
import os
import sqlite3
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from everycause.errors import UserError

DIGESTS = Path(".cache/digests.sqlite")
"""The hashes of files, relative to the repository; deleting it costs one reading of all files."""
SETTLED_NS = 2 * 10**9
"""Files that changed less than so many nanoseconds ago are not remembered: they may change again at the same time."""
THREADS = min(8, os.cpu_count() or 1)
CONTROLS = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, line breaks among them, and of bytes that are no UTF-8."""


def image_files(folder: Path) -> list[Path]:
    """Every file below a folder but hidden ones, sorted; a file that is no image is an error only when it is read.

    Raises:
        UserError: as visible_entries, or a link leads back to a folder that holds it.
    """
    return sorted(_visible_files(folder, (folder.resolve(),)))


def _visible_files(folder: Path, opened: tuple[Path, ...]) -> Iterator[Path]:
    """The visible files below a folder; `opened` are the real paths of the folders that led here."""
    for entry in visible_entries(folder):
        if not entry.is_dir():
            yield entry
            continue
        real = entry.resolve()
        if real in opened:
            raise UserError(f"'{entry}' is '{real}': a symbolic link leads back to a folder that holds it: remove it")
        yield from _visible_files(entry, (*opened, real))


def visible_entries(folder: Path) -> list[Path]:
    """The files and folders in a folder but hidden ones, sorted; symbolic links stand for what they lead to.

    Raises:
        UserError: the folder cannot be listed, a link is broken, or a name is no UTF-8 or holds control characters.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        for entry in entries:
            _check_entry(entry)
    except OSError as error:
        raise UserError(f"the folder '{folder}' cannot be listed ({error.strerror}): check its permissions") from error
    return entries


def _check_entry(entry: Path) -> None:
    """Refuse what can be neither read nor listed, and names that no sentence or table could show."""
    if not entry.name.isprintable() and any(unicodedata.category(letter) in CONTROLS for letter in entry.name):
        name, kind = os.fsencode(entry.name), "holds control characters"
        if any(unicodedata.category(letter) == "Cs" for letter in entry.name):
            kind = "is no UTF-8"
        raise UserError(f"the name {name!r} in '{entry.parent}' {kind}: rename it")
    if entry.is_file() or entry.is_dir():
        return
    if entry.is_symlink() and not entry.exists():
        raise UserError(f"the symbolic link '{entry}' to '{os.readlink(entry)}' is broken: mend or remove it")
    raise UserError(f"'{entry}' is neither a file nor a folder: remove it from the data folder")


def within(root: Path, place: str, key: str) -> Path:
    """A file or folder below a data folder.

    Args:
        root: The data folder.
        place: Path relative to it.
        key: What names the path, for the message: a dotted path of params.yaml, or a row and file.

    Raises:
        UserError: the path leaves the data folder, or cannot be one.
    """
    path = root / place
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null character
        raise UserError(f"{key}: {place!r} is no path that can be followed ({error}): mend it") from error
    if not inside:
        raise UserError(f"{key}: '{place}' lies outside '{root}': paths may not leave the data folder")
    return path


def content_digest(files: Sequence[Path], root: Path | None = None) -> str:
    """A hash of the paths and contents of files; symbolic links are followed.

    Args:
        files: Files, in any order.
        root: Folder to which the hashed paths are relative; None hashes the paths as they are given.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    found = remembered("sha256", files, _sha256)
    names = [file.relative_to(root) if root else file for file in files]
    lines = sorted(f"{name.as_posix()} {digest}" for name, digest in zip(names, found, strict=True))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def remembered(
    question: str,
    files: Sequence[Path],
    answer: Callable[[Path], str],
    threads: int = THREADS,
    lasting: Callable[[str], bool] = bool,
) -> list[str]:
    """The answer to a question about each file; it is asked again only when the file changed.

    Args:
        question: What is asked, with what the answer depends on beside the file.
        files: The files.
        answer: Answers for one file.
        threads: Number of files that are read at once.
        lasting: Whether an answer is kept for the next process.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    with ThreadPoolExecutor(threads) as pool:
        states = list(pool.map(_state, files))
    names = (str(file.absolute()).encode("utf-8", "backslashreplace").decode() for file in files)
    keys = [f"{question} {name}" for name in names]
    known = dict(_known(keys))
    missing = [i for i, key in enumerate(keys) if known.get(key, ("", ""))[0] != states[i]]
    with ThreadPoolExecutor(threads) as pool:
        answers = dict(zip(missing, pool.map(answer, [files[i] for i in missing]), strict=True))
    now = time.time_ns()
    settled = [i for i in missing if lasting(answers[i]) and now - int(states[i].rsplit(" ", 1)[1]) > SETTLED_NS]
    _remember([(keys[i], states[i], answers[i]) for i in settled])
    return [answers[i] if i in answers else known[key][1] for i, key in enumerate(keys)]


def _state(file: Path) -> str:
    """What changes when a file does; the time of the inode's last change, in nanoseconds, comes last."""
    try:
        found = file.stat()
    except OSError as error:
        raise UserError(f"'{file}' is missing or cannot be read ({error.strerror}): restore or remove it") from error
    return f"{found.st_size} {found.st_ino} {found.st_mtime_ns} {found.st_ctime_ns}"


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"'{file}' cannot be read ({error.strerror}): check its permissions and the drive") from error


def _known(keys: list[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Key, state and answer of what is remembered; nothing where the file of hashes cannot be read."""
    if not DIGESTS.is_file():
        return
    try:
        with closing(sqlite3.connect(DIGESTS, timeout=30)) as store:
            for start in range(0, len(keys), 500):
                some = keys[start : start + 500]
                marks = ",".join("?" * len(some))
                for key, state, answer in store.execute(f"SELECT * FROM answers WHERE key IN ({marks})", some):
                    yield key, (state, answer)
    except sqlite3.Error:
        return  # damaged or locked: the files are read again


def _remember(rows: list[tuple[str, str, str]]) -> None:
    """Keep answers for the next process; where that fails, the next process reads the files again."""
    if not rows:
        return
    try:
        DIGESTS.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(DIGESTS, timeout=30)) as store, store:
            store.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, state TEXT, answer TEXT)")
            store.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)
    except (OSError, sqlite3.Error):
        return
