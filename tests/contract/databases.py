"""Real database servers, started by the tests on a free port as an unprivileged user."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from tests.servers import free_port

PASSWORD = "pa55/w@rd"  # not safe in a URL as it is, and searched for in messages
START_TIMEOUT = 60.0


class NotInstalled(Exception):
    """Why a server cannot be started here."""


def user_for(*names: str) -> str | None:
    """Return the user a server runs as: the servers refuse root. None keeps the current one."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in (*names, "nobody") if name in known)


def program(name: str, *folders: Path) -> str:
    """Return a program's path. Raises NotInstalled."""
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", ""), "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise NotInstalled(f"{name} is not installed")
    return found


class Database(ABC):
    """A server with its data in a folder of its own. `stop` and `start` keep the data."""

    users: tuple[str, ...]

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="easel-db-"))
        self.log = self.folder / "log"
        self.port = free_port()
        self.user = user_for(*self.users)
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL with the password, as people write it."""

    @abstractmethod
    def install(self) -> None:
        """Make the data files. Raises NotInstalled."""

    @abstractmethod
    def command(self) -> list[str]:
        """The server's command line."""

    @abstractmethod
    def ask(self) -> None:
        """Connect; raise an Exception while the server does not answer."""

    def run(self, *command: str) -> None:
        """Run a program as the server's user until it ends."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            user=self.user,
            group=self._group(),
            extra_groups=[] if self.user else None,
            capture_output=True,
            timeout=START_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                user=self.user,
                group=self._group(),
                extra_groups=[] if self.user else None,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        self.wait_for(self.ask)

    def wait_for(self, look: Callable[[], None]) -> None:
        """Call `look` until it does not raise."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                look()
            except Exception as error:
                assert self.process is not None
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(self.log.read_text(errors="replace")) from error
                time.sleep(0.05)  # the only sign of readiness is an answer
            else:
                return

    def stop(self) -> None:
        """Stop the server at once; its data stay."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def remove(self) -> None:
        """Stop the server and delete its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _group(self) -> int | None:
        return pwd.getpwnam(self.user).pw_gid if self.user else None


class MariaDb(Database):
    """MariaDB."""

    users = ("mysql",)

    @property
    def url(self) -> str:
        return f"mysql://easel:pa55%2Fw%40rd@127.0.0.1:{self.port}/easel"

    def install(self) -> None:
        program("mariadbd")
        self.run(
            program("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )
        self.start()
        import pymysql

        with pymysql.connect(unix_socket=str(self.folder / "socket"), user="root") as connection:
            cursor = connection.cursor()
            cursor.execute("CREATE DATABASE easel CHARACTER SET latin1")  # the table says its own
            cursor.execute("CREATE USER easel@'127.0.0.1' IDENTIFIED BY %s", (PASSWORD,))
            cursor.execute("GRANT ALL ON easel.* TO easel@'127.0.0.1'")

    def command(self) -> list[str]:
        return [
            program("mariadbd"),
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=16M",
        ]

    def ask(self) -> None:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self.folder / "socket"))


class PostgreSql(Database):
    """PostgreSQL."""

    users = ("postgres",)
    folders = tuple(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))

    @property
    def url(self) -> str:
        return f"postgresql://easel:pa55%2Fw%40rd@127.0.0.1:{self.port}/easel"

    def install(self) -> None:
        initdb = program("initdb", *self.folders)
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self.run(
            initdb,
            "--no-sync",
            "--no-locale",
            "--encoding=UTF8",
            "--username=easel",
            "--auth=scram-sha-256",
            f"--pwfile={password}",
            f"--pgdata={self.folder / 'data'}",
        )
        self.start()
        with self._connect("postgres") as connection:
            connection.execute("CREATE DATABASE easel")

    def command(self) -> list[str]:
        return [
            program("postgres", *self.folders),
            "-D",
            str(self.folder / "data"),
            "-k",
            str(self.folder),
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-c",
            "fsync=off",
            "-c",
            "max_connections=40",
        ]

    def stop(self) -> None:
        # SIGINT is PostgreSQL's "fast": it ends sessions instead of waiting for them.
        if self.process is not None:
            self.process.send_signal(2)
        super().stop()

    def ask(self) -> None:
        self._connect("postgres").close()

    def _connect(self, database: str):  # type: ignore[no-untyped-def]
        import psycopg

        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="easel",
            password=PASSWORD,
            dbname=database,
            autocommit=True,
            connect_timeout=5,
        )
