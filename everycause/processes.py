"""Which process does a piece of work, written down so that another process can tell whether it still runs.

A host name and a process id do not name a process: containers may share host names and all of them have a process 1,
ids are used again, and a reboot ends everything. So the note holds the machine, its boot, the namespace of process ids
(one for each container), the id and the start of the process.
"""

import hashlib
import os
import re
import socket
from pathlib import Path
from typing import Any

import psutil

NO_CONTAINER = ("", "pid:[4026531836]")
"""Namespaces outside containers: Linux gives the first one this constant number; other systems have none."""


def this_process() -> dict[str, Any]:
    """Host, machine, boot, namespace, id and start (seconds since 1970, UTC) of this process."""
    return {**_here(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def is_dead(process: dict[str, Any]) -> bool:
    """Whether a process, as `this_process` described it, has ended.

    Nothing is known of other machines and of other containers: their processes count as alive.
    """
    here = _here()
    if any(process.get(key, here[key]) != here[key] for key in ("host", "machine", "namespace")):
        return False
    if process.get("boot", here["boot"]) != here["boot"]:
        # the machine was started anew since; a container of this name may as well run on another machine
        return here["namespace"] in NO_CONTAINER
    try:
        found = psutil.Process(process["pid"])
        return abs(found.create_time() - process["started"]) > 1 or found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def without_password(address: str) -> str:
    """The address of a server or database, fit to be shown."""
    return re.sub(r"(\w:/+[^:/@\s]*):\S*@", r"\1:***@", address)


def _here() -> dict[str, str]:
    """Where this process runs. The machine's id is not to be shown to others as it is, hence the hash."""
    machine = _text("/etc/machine-id")
    return {
        "host": socket.gethostname(),
        "machine": hashlib.sha256(f"everycause {machine}".encode()).hexdigest()[:12] if machine else "",
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": os.readlink("/proc/self/ns/pid") if os.path.islink("/proc/self/ns/pid") else "",
    }


def _text(path: str) -> str:
    """What a file of the system says, or nothing where there is none."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
