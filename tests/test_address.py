"""Which database a command goes to: --dsn, else DATABASE_URL, else what libpq finds itself."""

from pathlib import Path
from urllib.parse import quote

import pytest
from psycopg.conninfo import conninfo_to_dict

from pyscore import address
from pyscore.cluster import PrivateCluster
from pyscore.errors import PyscoreError
from tests.commands import alembic, call, output


@pytest.fixture(autouse=True)
def no_address_of_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    for name in ("PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE", "PGSERVICEFILE"):
        monkeypatch.delenv(name, raising=False)


def reached(dsn: str | None = None) -> tuple[str, str]:
    """Connect, and say to which database and as whom."""
    with address.connect(address.resolve(dsn)) as connection:
        row = connection.execute("select current_database()::text, current_user::text").fetchone()
    assert row is not None
    return row


def libpq_variables(server: PrivateCluster, database: str) -> dict[str, str]:
    return {
        "PGHOST": server.host,
        "PGPORT": str(server.port),
        "PGDATABASE": database,
        "PGUSER": "postgres",
    }


def test_dsn_beats_database_url_beats_libpqs_variables(
    server: PrivateCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in libpq_variables(server, "template1").items():
        monkeypatch.setenv(name, value)
    assert reached() == ("template1", "postgres")
    monkeypatch.setenv("DATABASE_URL", server.conninfo("postgres"))
    assert reached() == ("postgres", "postgres")
    assert reached(server.conninfo("pyscore_cron")) == ("pyscore_cron", "postgres")


def test_what_an_address_leaves_open_comes_from_libpqs_variables(
    server: PrivateCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in libpq_variables(server, "template1").items():
        monkeypatch.setenv(name, value)
    assert reached("dbname=postgres") == ("postgres", "postgres")
    monkeypatch.setenv("DATABASE_URL", "postgresql:///postgres")
    assert reached() == ("postgres", "postgres")


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://postgres@/postgres?host={quoted}&port={port}",
        "postgres://postgres@/postgres?host={quoted}&port={port}",
        "postgresql+psycopg://postgres@/postgres?host={quoted}&port={port}",
        "postgresql+asyncpg://postgres@/postgres?host={quoted}&port={port}",
        "postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres",
        "postgresql://postgres@127.0.0.1:{port}/postgres?application_name=mine",
        "host={host} port={port} dbname=postgres user=postgres",
        "  host='{host}' port={port} dbname='postgres' user=postgres\n",
    ],
)
def test_every_common_form_leads_to_the_database(
    server: PrivateCluster, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    text = form.format(host=server.host, quoted=quote(server.host, safe=""), port=server.port)
    assert reached(text) == ("postgres", "postgres")
    monkeypatch.setenv("DATABASE_URL", text)
    assert reached() == ("postgres", "postgres")


def test_a_service_of_libpqs_service_file(
    server: PrivateCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "services"
    file.write_text(
        f"[community]\nhost={server.host}\nport={server.port}\ndbname=template1\nuser=postgres\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    assert reached("service=community") == ("template1", "postgres")
    assert reached("postgresql://?service=community") == ("template1", "postgres")
    monkeypatch.setenv("PGSERVICE", "community")
    assert reached() == ("template1", "postgres")


def test_names_and_passwords_keep_their_characters() -> None:
    text = address.resolve(
        "postgresql+psycopg://us%40er:p%3A%2Fss@db.example:5433/a%20b?sslmode=disable"
    )
    assert conninfo_to_dict(text) == {
        "user": "us@er",
        "password": "p:/ss",
        "host": "db.example",
        "port": "5433",
        "dbname": "a b",
        "sslmode": "disable",
    }
    assert address.describe(text) == "host db.example, port 5433, database a b, user us@er"


@pytest.mark.parametrize("source", ["--dsn", "DATABASE_URL"])
@pytest.mark.parametrize(
    "text",
    [
        "mysql://app:s3cret@db/app",
        "sqlite:///app.db",
        "http://app:s3cret@db/",
        "postgressql://db/app",
    ],
)
def test_other_schemes_are_refused(monkeypatch: pytest.MonkeyPatch, source: str, text: str) -> None:
    if source == "DATABASE_URL":
        monkeypatch.setenv("DATABASE_URL", text)
    with pytest.raises(PyscoreError) as caught:
        address.resolve(text if source == "--dsn" else None)
    said = str(caught.value)
    assert caught.value.exit_code == 2
    assert said.startswith(f"{source} names a {text.split(':')[0]}:// database;")
    assert "expected postgresql://user@host:port/database" in said
    assert "s3cret" not in said


def test_a_command_finds_the_database_by_itself(server: PrivateCluster, database: str) -> None:
    name = str(conninfo_to_dict(database)["dbname"])
    # a database that has our schema, by every way in turn; the others have none
    elsewhere = {"PGDATABASE": "postgres"}
    variables = libpq_variables(server, name)
    assert '"queue_depth": 0' in call("status", "--json", **variables).stdout
    by_url = {"DATABASE_URL": database} | variables | elsewhere
    assert '"queue_depth": 0' in call("status", "--json", **by_url).stdout
    by_dsn = {"DATABASE_URL": server.conninfo("postgres")} | variables | elsewhere
    assert '"queue_depth": 0' in call("status", "--json", "--dsn", database, **by_dsn).stdout


def test_alembic_takes_the_same_addresses(server: PrivateCluster, database: str) -> None:
    assert "0005" in output(alembic("current", DATABASE_URL=database))
    assert "0005" in output(alembic("-x", f"dsn={database}", "current", DATABASE_URL="dbname=none"))
    name = str(conninfo_to_dict(database)["dbname"])
    assert "0005" in output(alembic("current", **libpq_variables(server, name)))
