"""A managed service: no superuser anywhere; its master role at most creates databases and roles."""

import json
from collections.abc import Iterator

import psycopg
import pytest

from pyscore.cluster import PrivateCluster
from tests.catalogue import schema_dump
from tests.commands import call, error_line, output
from tests.community import add_collaborator, add_project, add_user, configure, drain, one, score
from tests.conftest import dsn, janitor
from tests.oracle import assert_all_right

MASTERS = {"a plain owner": "", "a master that creates roles": "createrole createdb"}
ROLES = "builder_score_owner, builder_score_operator"
OURS = "select string_agg(rolname, ' ' order by rolname) from pg_roles where rolname ~ '^builder'"


@pytest.fixture(params=MASTERS)
def master(request: pytest.FixtureRequest, managed_server: PrivateCluster) -> Iterator[str]:
    """The address of a database by its owner, who made the application's tables."""
    managed_server.psql("-c", f"create role master login {MASTERS[request.param]}")
    try:
        with janitor(managed_server, "managed"):
            managed_server.psql("-c", "alter database managed owner to master")
            yield dsn(managed_server, "managed", user="master")
    finally:
        managed_server.psql("-c", "drop role master")
        managed_server.psql("-c", f"drop role if exists {ROLES}")


def test_the_owner_of_a_database_installs_scores_and_uninstalls(
    master: str, managed_server: PrivateCluster, request: pytest.FixtureRequest
) -> None:
    creates_roles = request.node.callspec.params["master"] == "a master that creates roles"
    before = schema_dump(managed_server, master)
    said = output(call("migrate", "--dsn", master))
    assert ("may not create or become" in said) is not creates_roles
    if managed_server.has_extension("pg_cron"):
        assert "pyscore schedule --cron-dsn ADDRESS" in said
    assert "keep `pyscore worker` running instead" in said

    with psycopg.connect(master, autocommit=True) as db:
        owner = "builder_score_owner" if creates_roles else "master"
        assert one(db, "select builder_score.owner_role()") == owner
        assert one(db, OURS) == (
            "builder_score_operator builder_score_owner" if creates_roles else None
        )
        configure(db, debounce_window="0")
        ann, bob = add_user(db, "ann", bio="ships"), add_user(db, "bob")
        add_collaborator(db, add_project(db, ann, status="shipped"), bob)
        output(call("worker", "--once", "--dsn", master))
        assert score(db, ann) == 21
        assert_all_right(db)
        db.execute("update builder_score.worker_status set heartbeat_at = clock_timestamp()")
        assert "healthy" in output(call("status", "--dsn", master))
        output(call("verify", "--dsn", master))
        db.execute("update users set builder_score = 7")
        output(call("recompute", "ann", "--dsn", master))
        assert score(db, ann) == 21
        assert json.loads(output(call("explain", "ann", "--json", "--dsn", master)))["score"] == 21
        output(call("pause", "--dsn", master))
        output(call("resume", "--dsn", master))
        output(call("migrate", "--dsn", master))
        db.execute("select builder_score.detach()")
        db.execute("select builder_score.attach()")
        drain(db)
        assert_all_right(db)
        db.execute("truncate users cascade")
    output(call("uninstall", "--yes", "--dsn", master))
    assert schema_dump(managed_server, master) == before
    assert managed_server.psql("-Atc", OURS) == "\n"


@pytest.mark.parametrize("master", ["a master that creates roles"], indirect=True)
def test_a_master_that_creates_roles_makes_operators(
    master: str, managed_server: PrivateCluster
) -> None:
    output(call("migrate", "--dsn", master))
    with psycopg.connect(master, autocommit=True) as db:
        db.execute("create role person login")
        try:
            address = dsn(managed_server, "managed", user="person")
            line = error_line(call("pause", "--dsn", address))
            grant = line[line.index("GRANT ") :]
            assert grant == "GRANT builder_score_operator TO person"
            db.execute(grant.encode())
            output(call("pause", "--dsn", address))
        finally:
            db.execute("drop role person")


@pytest.mark.parametrize("master", ["a master that creates roles"], indirect=True)
def test_a_role_that_somebody_has_dropped_keeps_nobody_from_uninstalling(
    master: str, managed_server: PrivateCluster
) -> None:
    output(call("migrate", "--dsn", master))
    with psycopg.connect(dsn(managed_server, "managed"), autocommit=True) as db:
        db.execute("drop owned by builder_score_operator; drop role builder_score_operator")
    output(call("uninstall", "--yes", "--dsn", master))
    assert managed_server.psql("-Atc", OURS) == "\n"


@pytest.mark.parametrize("master", ["a plain owner"], indirect=True)
def test_an_owner_role_that_could_be_somebody_is_refused(
    master: str, managed_server: PrivateCluster
) -> None:
    managed_server.psql("-c", "create role builder_score_operator")
    managed_server.psql("-c", "create role builder_score_owner login")
    line = error_line(call("migrate", "--dsn", master))
    assert "role builder_score_owner is there, and can log in or is a superuser" in line
    mend = line[line.index("ALTER ROLE") : line.index("; then migrate")]
    managed_server.psql("-c", mend)
    managed_server.psql("-c", "grant builder_score_owner to master")
    output(call("migrate", "--dsn", master))
    with psycopg.connect(master) as db:
        assert one(db, "select builder_score.owner_role()") == "builder_score_owner"
    # the roles were not the installer's to drop
    done = call("uninstall", "--yes", "--dsn", master)
    assert "uninstalled" in done.stdout
    assert "role builder_score_owner stays: master may not drop it" in done.stdout + done.stderr
    assert "builder_score_operator builder_score_owner" in managed_server.psql("-Atc", OURS)
