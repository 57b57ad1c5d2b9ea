"""Identity of files by content, with hashes kept in `.cache/digests.sqlite` so that unchanged files are read once.

A file counts as unchanged while its path, size, inode and times stay the same. The time of the last change of the inode
is among them, because it cannot be set: a copy with the old modification time is noticed.
"""

import hashlib
import os
import sqlite3
import time
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
    question: str, files: Sequence[Path], answer: Callable[[Path], str], threads: int = THREADS
) -> list[str]:
    """The answer to a question about each file; it is asked again only when the file changed.

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
    settled = [i for i in missing if now - int(states[i].rsplit(" ", 1)[1]) > SETTLED_NS]
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
