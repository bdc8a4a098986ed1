"""A real PgBouncer before a private server."""

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import quote

import psycopg

from pyscore.cluster import PrivateCluster
from tests.interleave import until

CONFIG = """
[databases]
narrow = dbname={database} pool_size=1 pool_mode=transaction
wide = dbname={database} pool_size=3 pool_mode=transaction
taken = dbname={database} pool_size=2 pool_mode=transaction
sessions = dbname={database} pool_size=3 pool_mode=session
one_session = dbname={database} pool_size=1 pool_mode=session
* =
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
listen_port = {port}
auth_type = trust
auth_file = {folder}/pgbouncer.users
server_round_robin = {round_robin}
"""


class PgBouncer:
    """A PgBouncer on a socket in the server's own directory, in front of one database."""

    def __init__(self, server: PrivateCluster, database: str, port: int = 6432) -> None:
        self._folder = server.directory
        self._server = server
        self._database = database
        self._port = port  # the number in the socket's name, and no more

    def address(self, pool: str) -> str:
        folder = quote(str(self._folder), safe="")
        return f"postgresql://postgres@/{pool}?host={folder}&port={self._port}"

    @contextmanager
    def running(self, *, round_robin: bool = False) -> Generator[None]:
        program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
        assert program is not None, "install pgbouncer (make test does)"
        where = f"host={self._server.host} port={self._server.port} "
        config = CONFIG.format(
            database=self._database,
            folder=self._folder,
            port=self._port,
            round_robin=int(round_robin),
        ).replace("dbname=", f"{where}dbname=")
        file = self._folder / "pgbouncer.ini"
        file.write_text(config)
        (self._folder / "pgbouncer.users").write_text('"postgres" ""\n')
        for written in (file, self._folder / "pgbouncer.users"):
            written.chmod(0o644)
        # like PostgreSQL it refuses to run as root, and runs as whoever the server runs as
        with subprocess.Popen(
            [program, str(file)],
            user=self._server.data_dir.owner() if os.geteuid() == 0 else None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                until(self._answers, "PgBouncer answers")
                yield
            finally:
                process.terminate()

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.address("narrow")).close()
        except psycopg.OperationalError:
            return False
        return True
