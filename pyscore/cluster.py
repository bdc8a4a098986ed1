"""A private PostgreSQL server, for the demo, the tests, the benchmarks and the examples.

The server has its own directory, port and socket, and nothing else on the machine knows about it.
Unlike PostgreSQL's own tools it can be started by root (containers and CI are root): the server
then runs as the operating system's user ``postgres``, or ``nobody`` where there is none.

    with PrivateCluster(cron_database="app") as cluster:
        cluster.psql("-c", "create database app")
        psycopg.connect(cluster.conninfo("app"))
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias, TypedDict
from urllib.parse import quote

__all__ = [
    "BIN_DIR_VARIABLE",
    "MINIMUM_VERSION",
    "ClusterError",
    "PrivateCluster",
    "Setting",
    "find_bin_dir",
]

MINIMUM_VERSION = 15
"""The oldest PostgreSQL major version that pyscore supports."""

BIN_DIR_VARIABLE = "PYSCORE_PG_BINDIR"
"""The environment variable that names the directory of the server's programs."""

Setting: TypeAlias = str | int | float | bool
"""A value for postgresql.conf; a bare number has the unit that PostgreSQL gives the setting."""

_DISTRIBUTION_ROOT = Path("/usr/lib/postgresql")
_SERVER_PROGRAMS = ("postgres", "initdb", "pg_ctl")
_SOCKET_PATH_MAX = 107
_START_TIMEOUT_S = 60
_HOST = "127.0.0.1"


class ClusterError(RuntimeError):
    """The server could not be found, started or stopped.

    The first line of the message says what happened and what to do; when the server refused to
    start, the end of its log follows.
    """


class _Identity(TypedDict):
    """Whom a server process runs as, as keyword arguments of subprocess; all None: ourselves."""

    user: int | None
    group: int | None
    extra_groups: Sequence[int] | None


class PrivateCluster:
    """A private PostgreSQL server: made on the first start, gone on the last exit.

    Constructing one touches no disk. As a context manager it starts on entry and is closed on
    exit. It trusts whoever reaches its socket, as the superuser ``postgres`` or any other role; the
    socket is in a directory that only the server's user and root may enter. With ``tcp`` it trusts
    whoever connects to 127.0.0.1 too, every local user included: pass ``tcp=False`` on a machine
    that is shared.

    Attributes:
        bin_dir: the directory of the server's programs.
        version: their major version.
        directory: the cluster's own directory: data, log and socket.
        data_dir: the data directory inside it.
        log_file: the server's log.
        host: the socket's directory, which is what libpq calls the host.
        port: the port on 127.0.0.1, and the number in the socket's name.
        settings: what is written to the configuration at the next start.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        bin_dir: str | os.PathLike[str] | None = None,
        port: int | None = None,
        tcp: bool = True,
        settings: Mapping[str, Setting] | None = None,
        cron_database: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Choose programs, directory and port.

        Args:
            directory: a new, an empty, or an earlier cluster's directory, kept on exit. Default: a
                temporary one, removed on exit.
            bin_dir: where the server's programs are. Default: what `find_bin_dir` finds.
            port: a port on 127.0.0.1. Default: a free one.
            tcp: listen on 127.0.0.1 too, not on the socket alone.
            settings: PostgreSQL settings by name; they win over everything set here.
            cron_database: run pg_cron with its tables in this database, which the caller creates
                (pg_cron looks for it once a second).
            environment: variables for the server's processes alone, beside the caller's own.

        Raises:
            ClusterError: no usable server programs, or the directory cannot hold a socket.
        """
        self.bin_dir = find_bin_dir(bin_dir)
        self.version = _major_version(self.bin_dir)
        self._identity, self._os_user = _server_identity()
        self._temporary = directory is None
        self._cron = cron_database is not None
        self._tcp = tcp
        self._server_environment = dict(environment or {})
        if directory is None:
            self.directory = self._temporary_base() / f"pyscore-{os.urandom(4).hex()}"
        else:
            self.directory = Path(directory).absolute()
        self.data_dir = self.directory / "data"
        self.log_file = self.directory / "server.log"
        self.host = str(self.directory)
        self.port = port if port is not None else _free_port()
        self.settings: dict[str, Setting] = {}
        if cron_database is not None:
            self.settings.update(self.pg_cron_settings(cron_database))
        self.settings.update(settings or {})
        spare = _SOCKET_PATH_MAX - _socket_path_bytes(self.directory)
        if spare < 0:
            raise ClusterError(
                f"{self.directory} is {-spare} bytes too long for a socket's path: "
                "give a shorter directory, or none"
            )

    # Life -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server and wait until it accepts connections; make the cluster if need be.

        Raises:
            ClusterError: it runs already, the port is taken, pg_cron is asked for and not
                installed, the directory cannot be used, or the server refused.
        """
        if self.running:
            raise ClusterError(f"the server in {self.directory} runs already: use restart()")
        if self._cron and not self.has_extension("pg_cron"):
            raise ClusterError(
                f"pg_cron is not installed for PostgreSQL {self.version}: "
                f"install postgresql-{self.version}-cron"
            )
        if self._tcp and not _port_is_free(self.port):
            raise ClusterError(f"port {self.port} on {_HOST} is taken: give another, or none")
        self._make()
        self._write_settings()
        # The log is a file: the server outlives pg_ctl, and would keep a pipe to us open.
        log = ["-l", str(self.log_file), "-t", str(_START_TIMEOUT_S)]
        arguments = ["-D", str(self.data_dir), "-w", *log, "start"]
        done = self._run("pg_ctl", *arguments, environment=self._server_environment)
        if done.returncode != 0:
            raise ClusterError(
                f"PostgreSQL {self.version} did not start; the end of {self.log_file}:\n"
                f"{self.log_tail()}"
            )

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server and wait until it is down; do nothing when it is not running.

        Args:
            mode: ``smart`` waits for the clients to leave, ``fast`` ends their sessions, and
                ``immediate`` skips the checkpoint, so that the next start recovers from the log.

        Raises:
            ClusterError: it is still up after a minute.
        """
        if not self.running:
            return
        wait = ["-w", "-t", str(_START_TIMEOUT_S)]
        done = self._run("pg_ctl", "-D", str(self.data_dir), "-m", mode, *wait, "stop")
        if done.returncode != 0 and self.running:
            raise ClusterError(
                f"the server in {self.directory} did not stop ({mode}): {_last_line(done.stderr)}"
            )

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop and start again, on the same port, with the settings as they are now.

        Args:
            mode: as for `stop`.

        Raises:
            ClusterError: as for `stop` and `start`.
        """
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Crash the server: SIGKILL for every one of its processes, the first one first.

        Returns when all are gone, so that `start` finds what a crash leaves and nothing that still
        runs.

        Raises:
            ClusterError: it is not running, or a process is still there after a minute.
        """
        postmaster = self._postmaster()
        if postmaster is None:
            raise ClusterError(f"no server runs in {self.directory}: start() it first")
        # Stopped first, so that it neither starts new processes nor sees the old ones go.
        os.kill(postmaster, signal.SIGSTOP)
        while (state := _process_state(postmaster)) is not None and state[0] not in "TZX":
            time.sleep(0.001)
        doomed = [postmaster, *_children(postmaster)]
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while any(_process_is_alive(pid) for pid in doomed):
            if time.monotonic() > deadline:
                raise ClusterError(f"the server in {self.directory} survived SIGKILL for a minute")
            time.sleep(0.005)
        # In a container whose first process reaps nobody, the dead postmaster stays a zombie, and
        # PostgreSQL takes the process named in these files for a running server.
        (self.data_dir / "postmaster.pid").unlink(missing_ok=True)
        (self.directory / f".s.PGSQL.{self.port}.lock").unlink(missing_ok=True)

    def close(self) -> None:
        """Stop the server and, when its directory is a temporary one, remove it.

        Raises:
            ClusterError: as for `stop`.
        """
        self.stop("immediate" if self._temporary else "fast")
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        """Start the server, unless it runs."""
        try:
            if not self.running:
                self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the cluster."""
        self.close()

    # Facts ----------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the server's first process is alive."""
        return self._postmaster() is not None

    def program(self, name: str) -> Path:
        """Return the path of one of the server's programs, such as ``psql`` or ``pg_dump``.

        Raises:
            ClusterError: there is no such program.
        """
        path = self.bin_dir / name
        if not path.exists():
            raise ClusterError(f"{path} does not exist: install PostgreSQL's client programs")
        return path

    def has_extension(self, name: str) -> bool:
        """Return whether these programs can ``CREATE EXTENSION name``.

        Where ``pg_config`` is missing or fails nobody can tell, and the answer is False.
        """
        try:
            done = subprocess.run(
                [self.bin_dir / "pg_config", "--sharedir"],
                capture_output=True,
                text=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            return False
        return Path(done.stdout.strip(), "extension", f"{name}.control").exists()

    def can_read(self, path: Path) -> bool:
        """Return whether the server's user, who may not be the caller, may read a file."""
        return self._may(path, "-r")

    def pg_cron_settings(self, database: str) -> dict[str, Setting]:
        """Return the settings with which pg_cron runs here.

        Its jobs connect as their owners over the cluster's own socket, where everyone is trusted.

        Args:
            database: where pg_cron keeps its tables; the only one that can create the extension.
        """
        return {
            "shared_preload_libraries": "pg_cron",
            "cron.database_name": database,
            "cron.host": self.host,
        }

    def conninfo(self, dbname: str = "postgres", *, user: str = "postgres") -> str:
        """Return a ``postgresql://`` URI over the socket, for libpq, psycopg and psql.

        With ``postgresql+psycopg`` as its scheme SQLAlchemy takes it too.
        """
        query = f"host={quote(self.host, safe='')}&port={self.port}"
        return f"postgresql://{quote(user, safe='')}@/{quote(dbname, safe='')}?{query}"

    def psql(self, *arguments: str, dbname: str = "postgres", stdin: str = "") -> str:
        """Run psql against a database, stopping at the first error, and return what it prints.

        Args:
            arguments: what follows ``psql``, such as ``"-Atc", "select 1"``.
            dbname: the database.
            stdin: a script, when the arguments name none.

        Raises:
            ClusterError: psql failed; the message is what it wrote to standard error.
        """
        done = subprocess.run(
            [
                self.program("psql"),
                *("--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"),
                *("--dbname", self.conninfo(dbname)),
                *arguments,
            ],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=_environment(),
        )
        if done.returncode != 0:
            raise ClusterError(f"psql: {done.stderr.strip().removeprefix('psql: ')}")
        return done.stdout

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the server's log; nothing when there is no log."""
        try:
            text = self.log_file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    # Inside ---------------------------------------------------------------------------------------

    def _temporary_base(self) -> Path:
        """Return a directory for temporary files that the server's user may enter."""
        candidates = [Path(tempfile.gettempdir()).absolute(), Path("/tmp"), Path("/var/tmp")]
        for base in candidates:
            fits = _socket_path_bytes(base / "pyscore-00000000") <= _SOCKET_PATH_MAX
            if fits and base.is_dir() and self._may(base, "-x"):
                return base
        names = ", ".join(map(str, candidates))
        raise ClusterError(f"{self._os_user} may use none of {names}: give a directory")

    def _make(self) -> None:
        """Make the directory and the cluster in it, unless they are there."""
        if (self.data_dir / "PG_VERSION").exists():
            made_by = int((self.data_dir / "PG_VERSION").read_text().strip())
            if made_by != self.version:
                raise ClusterError(
                    f"{self.directory} was made by PostgreSQL {made_by}, and this is "
                    f"{self.version}: remove it, or give another directory"
                )
            return
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            # A temporary directory's name is not ours when somebody else has made it.
            self.directory.mkdir(mode=0o700, exist_ok=not self._temporary)
        except OSError as error:
            raise ClusterError(
                f"cannot make {self.directory} ({error.strerror}): give another directory"
            ) from error
        # What is not ours is never handed to another user.
        if any(self.directory.iterdir()):
            raise ClusterError(
                f"{self.directory} is not empty and holds no cluster: give another directory"
            )
        user, group = self._identity["user"], self._identity["group"]
        if user is not None and group is not None:
            os.chown(self.directory, user, group)
        self.directory.chmod(0o700)
        if not self._may(self.directory, "-w"):
            raise ClusterError(
                f"{self._os_user} cannot reach {self.directory}: "
                "give a directory under /tmp, or none"
            )
        done = self._run(
            "initdb",
            *("-D", str(self.data_dir)),
            *("--username", "postgres", "--auth", "trust"),
            *("--encoding", "UTF8", "--locale", "C.UTF-8"),
            # A crash of the machine during initdb costs a second initdb.
            "--no-sync",
        )
        if done.returncode != 0:
            shutil.rmtree(self.data_dir, ignore_errors=True)
            raise ClusterError(f"initdb failed: {_last_line(done.stderr)}")
        with (self.data_dir / "postgresql.conf").open("a", encoding="utf-8") as conf:
            conf.write("\ninclude 'pyscore.conf'\n")

    def _write_settings(self) -> None:
        values: dict[str, Setting] = {
            "listen_addresses": _HOST if self._tcp else "",
            "port": self.port,
            "unix_socket_directories": self.host,
            "max_connections": 200,
            "timezone": "UTC",
            **self.settings,
        }
        path = self.data_dir / "pyscore.conf"
        lines = [f"{name} = {_quoted(value)}\n" for name, value in values.items()]
        path.write_text("".join(lines), encoding="utf-8")
        # Written by root, read by the server's user.
        path.chmod(0o644)

    def _run(
        self, program: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a server program as the server's user, away from the caller's environment."""
        try:
            return subprocess.run(
                [self.program(program), *arguments],
                # The caller's own directory may be closed to the server's user.
                cwd=self.directory,
                env={**_environment(), "HOME": str(self.directory), **(environment or {})},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                umask=0o077,
                **self._identity,
            )
        except OSError as error:
            raise ClusterError(
                f"cannot run {program} as {self._os_user} ({error.strerror}): "
                "run as an ordinary user instead"
            ) from error

    def _may(self, path: Path, what: Literal["-r", "-w", "-x"]) -> bool:
        """Return whether the server's user may read (-r), write (-w) or enter (-x) a path.

        os.access answers for the caller, and root may do everything.
        """
        return subprocess.run(["test", what, path], check=False, **self._identity).returncode == 0

    def _postmaster(self) -> int | None:
        """Return the process id of the server's first process, or None when it is not alive."""
        try:
            pid = int((self.data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None
        if not _process_is_alive(pid):
            return None
        # After a crash the number in the file may have become somebody else's.
        with contextlib.suppress(OSError):
            if not Path(f"/proc/{pid}/cwd").samefile(self.data_dir):
                return None
        return pid


def find_bin_dir(bin_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the directory of the newest PostgreSQL server's programs.

    Looks where the environment's PYSCORE_PG_BINDIR says and nowhere else; without it at the Debian
    and Ubuntu packages, then at what ``pg_config`` on the PATH says.

    Args:
        bin_dir: look nowhere else, whatever the environment says.

    Raises:
        ClusterError: there is none, or none that is new enough.
    """
    source = ""
    if bin_dir is None and (from_environment := os.environ.get(BIN_DIR_VARIABLE)):
        bin_dir, source = from_environment, f"{BIN_DIR_VARIABLE}: "
    if bin_dir is not None:
        chosen = Path(bin_dir).absolute()
        if not _has_server(chosen):
            raise ClusterError(
                f"{source}{chosen} holds no PostgreSQL server programs: give their directory"
            )
        if _major_version(chosen) < MINIMUM_VERSION:
            raise ClusterError(
                f"{source}{chosen} holds PostgreSQL {_major_version(chosen)}: "
                f"give the programs of {MINIMUM_VERSION} or newer"
            )
        return chosen
    candidates = [path / "bin" for path in _DISTRIBUTION_ROOT.glob("*")]
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        done = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            candidates.append(Path(done.stdout.strip()))
    # A directory that holds only client programs is common beside an older server.
    found = [(_major_version(path), path) for path in candidates if _has_server(path)]
    usable = [pair for pair in found if pair[0] >= MINIMUM_VERSION]
    if not usable:
        raise ClusterError(
            f"no PostgreSQL {MINIMUM_VERSION}+ server programs found: "
            f"install postgresql-{MINIMUM_VERSION} or newer (make demo does)"
        )
    return max(usable)[1]


def _has_server(bin_dir: Path) -> bool:
    return all(os.access(bin_dir / program, os.X_OK) for program in _SERVER_PROGRAMS)


def _major_version(bin_dir: Path) -> int:
    done = subprocess.run(
        [bin_dir / "postgres", "--version"], capture_output=True, text=True, check=False
    )
    match = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    return int(match[1]) if match else 0


def _server_identity() -> tuple[_Identity, str]:
    """Return whom the server runs as, and that user's name: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return _Identity(user=None, group=None, extra_groups=None), f"user {os.geteuid()}"
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Identity(user=entry.pw_uid, group=entry.pw_gid, extra_groups=[]), name
    raise ClusterError("PostgreSQL does not run as root: add an operating system user postgres")


def _environment() -> dict[str, str]:
    """Return our environment without libpq's variables: pg_cron's connections would heed them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C.UTF-8"}


def _socket_path_bytes(directory: Path) -> int:
    return len(os.fsencode(directory / ".s.PGSQL.65535"))


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does: connections of an earlier server that are still closing do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    # Below the range that the system gives to outgoing connections: one of those could otherwise
    # take the port while the server is down between a crash and its restart.
    ports = random.SystemRandom().sample(range(20000, 30000), 100)
    for port in ports:
        if _port_is_free(port):
            return port
    raise ClusterError(f"100 ports on {_HOST} between 20000 and 29999 are taken: give a port")


def _process_state(pid: int) -> tuple[str, int] | None:
    """Return a process's state letter and its parent, or None when /proc does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the program's name in brackets, and may hold anything.
    state, parent = stat.rpartition(")")[2].split()[:2]
    return state, int(parent)


def _process_is_alive(pid: int) -> bool:
    if Path("/proc/self/stat").exists():
        state = _process_state(pid)
        return state is not None and state[0] not in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        state = _process_state(int(entry.name))
        if state is not None and state[1] == pid:
            found.append(int(entry.name))
    return found


def _quoted(value: Setting) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    escaped = str(value).replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")
    return f"'{escaped}'"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"
