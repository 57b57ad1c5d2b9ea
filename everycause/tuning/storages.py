"""Where a study lives: a journal file, a database that SQLAlchemy reaches, or Optuna's gRPC proxy before either.

Trap: Optuna's heartbeats exist for databases alone. A worker that died on this machine is found by its process instead
(everycause.tuning.loop), whatever the storage.
"""

import json
import logging
import re
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from everycause.errors import UserError
from everycause.processes import without_password

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.storages.journal import BaseJournalFileLock
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 20
"""Seconds between signs of life of a trial in a database; after three times as long without one it counts as dead."""
PROXY_SECONDS = 10
"""Seconds that a proxy may take to answer."""
START_ATTEMPTS = 3
"""Several processes may create the tables of one database at once: all but one fail, and find them at the next try."""


def open_storage(
    address: str, stale: "Callable[[Study, FrozenTrial], None]", heartbeat: int = HEARTBEAT_SECONDS
) -> "BaseStorage":
    """A storage by its address: a path is a journal file, `grpc://host:port` a proxy, everything else a database URL.

    Args:
        address: The address.
        stale: Called for a trial of a database whose heartbeat has stopped.
        heartbeat: Seconds between the signs of life of a trial in a database.

    Raises:
        UserError: the storage is not to be reached or not readable; passwords are left out of the sentence.
    """
    import optuna
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        if "://" not in address:
            return _journal(address)
        if address.startswith("grpc://"):
            return _proxy(address)
        if re.fullmatch(r"sqlite(\+\w+)?:/{2,3}(:memory:)?", address):
            raise UserError(f"--storage {address} lies in memory and would be lost: name a file (sqlite:///study.db)")
        return _database(address, stale, heartbeat)
    except UserError:
        raise
    except (
        OSError,
        ImportError,
        ValueError,
        LookupError,
        TypeError,
        AssertionError,
        OptunaError,
        SQLAlchemyError,
    ) as error:
        shown = without_password(address)
        reason = (str(error).strip().splitlines() or [""])[0].replace(address, shown)
        raise UserError(
            f"the storage {shown} is not to be had ({type(error).__name__}: {reason}): start it, or give --storage a "
            "journal file or another URL"
        ) from error


class MendingLock:
    """A journal's lock that cuts off a last line without an end before anything is appended.

    A writer that is killed leaves such a line. Nobody has read it, since Optuna reads whole lines only; but the next
    writer would continue it, and the journal could not be read any more.
    """

    def __init__(self, path: Path, lock: "BaseJournalFileLock") -> None:
        self._path = path
        self._lock = lock

    def acquire(self) -> bool:
        """Take the lock and mend the file."""
        self._lock.acquire()
        try:
            _cut_off_half_a_line(self._path)
        except OSError:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()


def _journal(address: str) -> "BaseStorage":
    """A journal file; a last line that was cut short is removed, any other damage is an error.

    Raises:
        UserError: the address is a URL with a slash too few, or a line of the file is damaged.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    if url := re.match(r"([A-Za-z][A-Za-z0-9+.]+):/*(.*)", address):  # a single letter is a drive
        scheme, rest = url.groups()
        right = f"{scheme}:///{rest}" if scheme.startswith("sqlite") else f"{scheme}://{rest}"
        raise UserError(
            f"--storage {without_password(address)} is neither a path nor a URL, which has two slashes after the colon "
            f"(and a third before a file): write {without_password(right)}"
        )
    path = Path(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = MendingLock(path, JournalFileSymlinkLock(str(path)))
    if path.is_file():
        lock.acquire()
        lock.release()
        _check_lines(path)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _cut_off_half_a_line(path: Path) -> None:
    """Shorten a file to its last whole line, with a warning."""
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        if file.read(1) in (b"", b"\n"):
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
    log.warning("the journal %s ended in the middle of a line: its last %d bytes were cut off", path, size - whole)


def _check_lines(path: Path) -> None:
    """Refuse a journal with a line that is no entry.

    Raises:
        UserError: there is one.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                json.loads(line)["op_code"]
            except (ValueError, TypeError, KeyError) as error:
                if not line.endswith(b"\n"):  # another process is writing it
                    return
                raise UserError(
                    f"the storage {path} is not to be had (line {number} is damaged, {type(error).__name__}: {error}): "
                    "restore the file from a copy, or give --storage a journal file or another URL"
                ) from error


def _proxy(address: str) -> "BaseStorage":
    from optuna.storages import GrpcStorageProxy

    parts = urlsplit(address)
    storage = GrpcStorageProxy(host=parts.hostname or "localhost", port=parts.port or 13000)
    storage.wait_server_ready(timeout=PROXY_SECONDS)
    return storage


def _database(url: str, stale: "Callable[[Study, FrozenTrial], None]", heartbeat: int) -> "BaseStorage":
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    connected = partial(
        RDBStorage, url, heartbeat_interval=heartbeat, grace_period=3 * heartbeat, heartbeat_stale_trial_callback=stale
    )
    for _ in range(START_ATTEMPTS - 1):
        try:
            return connected()
        except SQLAlchemyError:
            time.sleep(1)
    return connected()
