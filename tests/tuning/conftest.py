"""Storages of studies, PostgreSQL among them: a real server, where Debian's package is installed."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import missing


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of an empty database on a server of its own."""
    if not shutil.which("pg_virtualenv"):
        missing("Debian's package postgresql")
    said = 'echo "postgresql://$PGUSER:$PGPASSWORD@127.0.0.1:$PGPORT/postgres"; cat'
    with subprocess.Popen(
        ["pg_virtualenv", "sh", "-c", said], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None and server.stdin is not None
        address = next((line.strip() for line in server.stdout if line.startswith("postgresql://")), "")
        assert address, "pg_virtualenv started no server"
        yield address
        server.stdin.close()
        server.stdout.read()


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty storage of every kind."""
    if request.param == "journal":
        return str(tmp_path / "journal.log")
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    server: str = request.getfixturevalue("postgresql")
    name = f"study_{abs(hash(str(tmp_path))) % 10**9}"
    subprocess.run(["psql", "-q", "-d", server, "-c", f"create database {name}"], check=True, capture_output=True)
    return server.removesuffix("postgres") + name
