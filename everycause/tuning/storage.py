"""Where studies live: a journal file, any database that SQLAlchemy reaches, or Optuna's gRPC proxy in front of one.

Trap: Optuna's heartbeats exist for databases alone, and reach back over a proxy no more than from a journal; who died on
this machine is found by its process instead (everycause.tuning.loop).
"""

import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

HEARTBEAT_SECONDS = 20
"""A trial in a database says so often that it is alive; after three times as long without a word it is given up."""
PROXY_SECONDS = 10
"""How long a proxy may take to answer."""
START_ATTEMPTS = 3
"""Several processes may create the tables of one database at once: all but one fail, and find them a moment later."""


def open_storage(address: str, stale: "Callable[[Study, FrozenTrial], None]", heartbeat: int = HEARTBEAT_SECONDS) -> "BaseStorage":
    """A storage by its address: a path is a journal file, `grpc://host:port` a proxy, everything else a database URL.

    Args:
        address: The address.
        stale: Called for a trial of a database whose heartbeat has stopped.
        heartbeat: Seconds between the signs of life of a trial in a database.

    Raises:
        ValueError: the storage is not to be reached or not readable; passwords are left out of the sentence.
    """
    import optuna
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        if "://" not in address:
            return _journal(Path(address))
        if address.startswith("grpc://"):
            return _proxy(address)
        return _database(address, stale, heartbeat)
    except (OSError, ImportError, ValueError, KeyError, TypeError, OptunaError, SQLAlchemyError) as error:
        reason = (str(error).strip().splitlines() or [""])[0].replace(address, shown(address))
        raise ValueError(
            f"the storage {shown(address)} is not to be had ({type(error).__name__}: {reason}): start it, or give --storage a journal file or another URL"
        ) from error


def shown(address: str) -> str:
    """An address without its password."""
    password = urlsplit(address).password if "://" in address else None
    return address.replace(f":{password}@", ":***@") if password else address


def _journal(path: Path) -> "BaseStorage":
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _proxy(address: str) -> "BaseStorage":
    from optuna.storages import GrpcStorageProxy

    parts = urlsplit(address)
    storage = GrpcStorageProxy(host=parts.hostname or "localhost", port=parts.port or 13000)
    storage.wait_server_ready(timeout=PROXY_SECONDS)
    return storage


def _database(url: str, stale: "Callable[[Study, FrozenTrial], None]", heartbeat: int) -> "BaseStorage":
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    connected = partial(RDBStorage, url, heartbeat_interval=heartbeat, grace_period=3 * heartbeat, heartbeat_stale_trial_callback=stale)
    for _ in range(START_ATTEMPTS - 1):
        try:
            return connected()
        except SQLAlchemyError:
            time.sleep(1)
    return connected()
