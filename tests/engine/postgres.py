"""A real PostgreSQL server of a test's own: Debian's package, a new cluster in a temporary folder, a free port, a password."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "pa:ss/w'rd-of-tests"


@dataclass
class Server:
    """One cluster. `url` holds the password, quoted as URLs are."""

    programs: Path
    data: Path
    port: int
    user: str | None
    url: str = ""

    def control(self, *words: str) -> None:
        """`pg_ctl`, as the cluster's owner."""
        command = [self.programs / "pg_ctl", "-D", self.data, "-w", "-s", "-l", self.data / "server.log", *words]
        subprocess.run(command, check=True, user=self.user, cwd=self.data, stdin=subprocess.DEVNULL)

    def restart(self) -> None:
        """At once, as after a crash: every connection is lost in the middle of what it did."""
        self.control("-m", "immediate", "restart")

    def new_database(self, name: str) -> str:
        """The URL of an empty database of this name."""
        import psycopg

        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url.rsplit("/", 1)[0] + f"/{name}"


def programs() -> Path | None:
    """The folder of PostgreSQL's programs: on the path, or where Debian has the newest version."""
    found = [Path(which).parent for which in [shutil.which("pg_ctl")] if which]
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    return next((path for path in [*found, *places] if (path / "initdb").exists()), None)


@contextmanager
def server() -> Iterator[Server]:
    """Start one. Without PostgreSQL the test is skipped, and fails where CI says that all is installed."""
    place = programs()
    if place is None:
        reason = "PostgreSQL is not installed here (Debian: apt-get install postgresql)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="bruno-postgres-"))  # pytest's own folders are closed to other users
    try:
        word = folder / "password"
        word.write_text(PASSWORD)
        if user:
            for path in (folder, word):
                os.chown(path, pwd.getpwnam(user).pw_uid, -1)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        data = folder / "data"
        options = ["-A", "scram-sha-256", "-U", "bruno", f"--pwfile={word}", "--no-sync", "--no-locale", "-E", "UTF8"]
        command = [place / "initdb", "-D", data, *options]
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        started = Server(place, data, port, user)
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n")
        started.control("start")
        quoted = PASSWORD.replace(":", "%3A").replace("/", "%2F").replace("'", "%27")
        started.url = f"postgresql+psycopg://bruno:{quoted}@127.0.0.1:{port}/postgres"
        try:
            yield started
        finally:
            started.control("-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
