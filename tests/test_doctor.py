"""`pyscore doctor`: each known way to be broken, broken on purpose and mended by what it prints."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg import Connection

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from pyscore.doctor.host import OPTIONAL, REQUIRED, TRIGGERS
from tests.community import add_user
from tests.examining import HEARD, Patient, examine, follow, level_of, mend, not_ok, of
from tests.host_schemas import HOSTS, HostSchema
from tests.statements import connect, run


@pytest.fixture(scope="module")
def patient(server: PrivateCluster, template: str) -> Iterator[Patient]:
    with Patient(server, template) as made:
        yield made


@pytest.fixture
def healthy(patient: Patient) -> str:
    """The address of a healthy database."""
    return patient.address()


# All is well --------------------------------------------------------------------------------------


def test_all_is_well(healthy: str) -> None:
    findings = examine(healthy)
    assert not_ok(findings) == []
    assert all(finding["remedy"] is None for finding in findings)
    (trial,) = of("trial write", findings)
    assert trial["message"] == "a score can be written, past all triggers on users"


def test_all_is_well_where_pg_cron_works(cron_database: str) -> None:
    with connect(cron_database) as db:
        add_user(db, "ann")
    findings = examine(cron_database)
    assert not_ok(findings) == []
    assert [finding["message"] for finding in of("job", findings)] == [
        "builder-score-worker, every minute, as postgres"
    ]


@pytest.mark.parametrize("host", HOSTS.values(), ids=list(HOSTS))
def test_all_is_well_on_every_host(
    server: PrivateCluster, empty_database: str, host: HostSchema
) -> None:
    with connect(empty_database) as db:
        db.execute("create role doctor_app login")
        run(db, host.tables.replace("{role}", "doctor_app"))
        settings = migrator.install_settings(host.schema)
        migrator.upgrade(empty_database, settings=settings)
        db.execute(HEARD)
        for trial in of("trial write", examine(empty_database)):
            if trial["level"] != "ok":  # its audit trigger has a table that only it may write
                follow(server, empty_database, trial["remedy"])
        own_alembic = "create table alembic_version" in host.tables
        assert [check for check, _, _ in not_ok(examine(empty_database))] == (
            ["autogenerate"] if own_alembic else []
        )
        migrator.downgrade(empty_database)
        db.execute("drop owned by doctor_app; drop role doctor_app")


def test_what_is_expected_on_the_host_is_what_attach_makes(scratch: Connection[Any]) -> None:
    made = scratch.execute(
        "select tgrelid::regclass::text, substr(tgname, 15) from pg_trigger"
        " where tgname like 'builder\\_score\\_%'"
    ).fetchall()
    expected = [(table, event) for table, events in TRIGGERS.items() for event in events]
    assert sorted(made) == sorted(expected)
    read = scratch.execute(
        "select distinct d.refobjid::regclass::text, a.attname from pg_rewrite as w"
        " join pg_depend as d on d.objid = w.oid and d.classid = 'pg_rewrite'::regclass"
        " join pg_attribute as a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid"
        " where w.ev_class in ('builder_score.host_users'::regclass,"
        " 'builder_score.host_projects'::regclass, 'builder_score.host_collaborations'::regclass)"
        " and d.refobjid <> w.ev_class and a.attnum > 0"
    ).fetchall()
    known = [
        (table, column)
        for columns in (REQUIRED, OPTIONAL)
        for table, names in columns.items()
        for column in names
    ]
    assert sorted(read) == sorted(known)


# Broken, and mended by the line that says so ------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """A way to be broken.

    Attributes:
        check: The check that finds it.
        level: How bad it is.
        says: What its line says, as a pattern.
        how: The statements that break it.
        also: Other checks that see it.
        traces: Whether something of it stays when it is mended.
    """

    check: str
    level: str
    says: str
    how: str
    also: tuple[str, ...] = ()
    traces: bool = False


def trigger(body: str, *, when: str = "before", more: str = "") -> str:
    """A trigger of the application's on users, run for our writes."""
    result = "new" if when == "before" else "null"
    return f"""
        {more};
        create function host_trigger() returns trigger language plpgsql as
        $$ begin {body}; return {result}; end $$;
        create trigger host_trigger {when} update on users
            for each row execute function host_trigger();
    """


UNREADABLE = "revoke usage on schema public from public; revoke usage on schema public from"

BROKEN = {
    # version, roles, grants
    "a migration that was interrupted": Broken(
        "schema",
        "fail",
        "at revision 0004, this package expects",
        "update builder_score.alembic_version set version_num = '0004'",
    ),
    "an owner that may log in": Broken(
        "roles", "fail", "may log in", "alter role builder_score_owner login"
    ),
    "an owner that may do all": Broken(
        "roles",
        "fail",
        "is a superuser",
        "alter role builder_score_owner superuser",
    ),
    "an owner that may not write the score": Broken(
        "grants",
        "fail",
        r"builder_score_owner may not write public\.users\.builder_score",
        "revoke update (builder_score) on users from builder_score_owner",
        ("trial write",),
    ),
    "somebody who may write what is ours": Broken(
        "grants",
        "warn",
        r"pg_monitor may INSERT, UPDATE builder_score\.settings",
        "grant insert, update on builder_score.settings to pg_monitor",
    ),
    "an owner that may not read projects": Broken(
        "grants",
        "fail",
        r"may not read public\.projects",
        "revoke select on projects from builder_score_owner",
    ),
    "an owner that may not use the schema": Broken(
        "grants",
        "fail",
        "may not use schema public",
        f"{UNREADABLE} builder_score_owner",
        ("trial write",),
    ),
    "a function for everybody": Broken(
        "grants",
        "fail",
        r"everybody has EXECUTE on builder_score\.enqueue_everyone\(text\)",
        "grant execute on function builder_score.enqueue_everyone to public",
    ),
    "a table for everybody": Broken(
        "grants",
        "fail",
        r"everybody has SELECT on builder_score\.score_state",
        "grant select on builder_score.score_state to public",
    ),
    "a domain for everybody": Broken(
        "grants",
        "fail",
        r"everybody has USAGE on builder_score\.user_id",
        "grant usage on domain builder_score.user_id to public",
    ),
    "a function that is somebody else's": Broken(
        "grants",
        "fail",
        r"write_scores\(.*\) is owned by postgres",
        "alter function builder_score.write_scores owner to postgres",
        ("trial write",),
    ),
    "a table that is somebody else's": Broken(
        "grants",
        "fail",
        r"builder_score\.score_recalc_queue is owned by postgres",
        "alter table builder_score.score_recalc_queue owner to postgres",
        ("trial write",),
    ),
    "an operator that lacks some rights": Broken(
        "grants",
        "fail",
        r"builder_score_operator lacks rights on builder_score\.health, builder_score\.settings, "
        r"builder_score\.verify\(builder_score\.user_id\[\]\)$",
        """revoke select on builder_score.health from builder_score_operator;
        revoke update (paused) on builder_score.settings from builder_score_operator;
        revoke execute on function builder_score.verify from builder_score_operator""",
    ),
    "an operator that may do nothing": Broken(
        "grants",
        "fail",
        "there is no role builder_score_operator, or it may do nothing",
        "drop owned by builder_score_operator",
    ),
    # the application's tables
    "detached": Broken("attached", "fail", "detached", "select builder_score.detach()"),
    "a view that is gone": Broken(
        "attached",
        "fail",
        "the views host_projects are gone",
        "drop view builder_score.host_projects cascade",
    ),
    "the score's column is gone": Broken(
        "attached",
        "fail",
        r"public\.users\.builder_score is gone",
        "alter table users drop column builder_score cascade",
        ("triggers", "columns", "indexes", "grants"),
        traces=True,
    ),
    "a table that was renamed": Broken(
        "attached",
        "fail",
        "users has been renamed to people",
        "alter table users rename to people",
    ),
    "tables that were moved": Broken(
        "attached",
        "fail",
        "moved from schema public to The Host's",
        """create schema "The Host's"; alter table users set schema "The Host's";
        alter table projects set schema "The Host's";
        alter table project_collaborators set schema "The Host's";""",
        traces=True,
    ),
    "a table that was replaced": Broken(
        "attached",
        "fail",
        r"scores are computed from public\.old, which is not the table project_collaborators",
        """alter table project_collaborators rename to old;
        create table project_collaborators (like old including all)""",
        ("triggers", "columns", "policies", "grants"),
        traces=True,
    ),
    "a profile column that came later": Broken(
        "columns",
        "fail",
        r"public\.users\.bio does not count",
        """select builder_score.detach(); alter table users drop column bio;
        select builder_score.attach(); alter table users add column bio text""",
        traces=True,
    ),
    "a profile column that was renamed": Broken(
        "columns",
        "fail",
        r"public\.users\.about counts, under the name",
        "alter table users rename column bio to about",
        traces=True,
    ),
    "a column that is needed and was renamed": Broken(
        "columns",
        "fail",
        r"public\.projects has no owner_id: renamed to The Owner\?",
        'alter table projects rename column owner_id to "The Owner"',
        ("indexes",),
    ),
    "a foreign key that is gone": Broken(
        "columns",
        "fail",
        r"the foreign key from public\.project_collaborators to public\.projects is gone",
        "alter table project_collaborators drop constraint project_collaborators_project_id_fkey",
    ),
    "a score that is rounded for another type": Broken(
        "columns",
        "fail",
        r"public\.users\.builder_score is integer now",
        "update builder_score.host set score_decimals = 1",
    ),
    "keys of another type": Broken(
        "columns",
        "fail",
        r"public\.users\.id has become text; .* hold uuid",
        """select builder_score.detach();
        alter table projects drop constraint projects_owner_id_fkey;
        alter table project_collaborators drop constraint project_collaborators_user_id_fkey;
        alter table users alter column id drop default, alter column id type text;
        alter table projects alter column owner_id type text;
        alter table project_collaborators alter column user_id type text;
        update builder_score.host set attached_at = now()""",
        ("attached", "triggers"),
        traces=True,
    ),
    "a trigger that is missing": Broken(
        "triggers",
        "fail",
        r"public\.projects lacks builder_score_update, builder_score_delete|builder_score_delete, ",
        "drop trigger builder_score_update on projects;"
        "drop trigger builder_score_delete on projects",
    ),
    "a trigger that is disabled": Broken(
        "triggers",
        "fail",
        r"builder_score_profile on public\.users is disabled",
        "alter table users disable trigger builder_score_profile",
    ),
    "triggers that are all disabled": Broken(
        "triggers",
        "fail",
        r"builder_score_insert on public\.projects is disabled",
        "alter table projects disable trigger all",
    ),
    "a trigger for replicas only": Broken(
        "triggers",
        "fail",
        r"builder_score_delete on public\.users is disabled",
        "alter table users enable replica trigger builder_score_delete",
    ),
    "a trigger that is left over": Broken(
        "triggers",
        "warn",
        r"builder_score_truncate is left over on public\.others",
        """create table others ();
        create trigger builder_score_truncate after truncate on others
            execute function builder_score.host_truncated()""",
    ),
    # row level security
    "a policy of ours that is missing": Broken(
        "policies",
        "warn",
        r"public\.users lacks our policy builder_score_write: scores would be too low",
        "drop policy builder_score_write on users",
    ),
    "a policy of ours that is missing where it matters": Broken(
        "policies",
        "fail",
        r"public\.projects lacks our policy builder_score_read: scores are too low",
        "alter table projects enable row level security;drop policy builder_score_read on projects",
    ),
    "a policy that hides rows from everybody": Broken(
        "policies",
        "fail",
        r"restrictive policy Only Mine on public\.projects applies to builder_score_owner: ",
        """alter table projects enable row level security;
        grant select on projects to pg_monitor;
        create policy "Only Mine" on projects as restrictive using (false)""",
    ),
    "a policy that would hide rows from us": Broken(
        "policies",
        "warn",
        r"restrictive policy ours on public\.users applies .* as soon as row level security",
        "create policy ours on users as restrictive to builder_score_owner using (false)",
    ),
    "a policy that hides rows from a role that we are": Broken(
        "policies",
        "fail",
        r"restrictive policy monitors on public\.projects applies",
        """alter table projects enable row level security;
        grant pg_monitor to builder_score_owner;
        create policy monitors on projects as restrictive to pg_monitor using (false)""",
    ),
    # indexes
    "an index that is missing": Broken(
        "indexes",
        "fail",
        r"public\.users has no usable index on \(builder_score desc, id desc\)",
        "drop index idx_users_builder_score",
    ),
    "an index that is not valid": Broken(
        "indexes",
        "fail",
        r"public\.users has no usable index",
        "update pg_index set indisvalid = false"
        " where indexrelid = 'idx_users_builder_score'::regclass",
    ),
    "an index of the host's that is not valid": Broken(
        "indexes",
        "fail",
        r"public\.idx_projects_owner_id is not valid",
        """drop index projects_owner_id_idx;
        create index idx_projects_owner_id on projects (owner_id);
        update pg_index set indisvalid = false
        where indexrelid = 'idx_projects_owner_id'::regclass""",
        traces=True,
    ),
    "an index that something else has the name of": Broken(
        "indexes",
        "fail",
        r"its name public\.idx_projects_owner_id is taken",
        "drop index projects_owner_id_idx; create table idx_projects_owner_id ()",
    ),
    "an index that serves nobody": Broken(
        "indexes",
        "warn",
        r"public\.left_over on public\.users is not valid",
        """create index left_over on users (email);
        update pg_index set indisvalid = false where indexrelid = 'left_over'::regclass""",
    ),
    # the application's triggers on users
    "a table that a trigger may not write": Broken(
        "trial write",
        "fail",
        "permission denied for table audit log.*",
        trigger(
            'insert into "audit log" values (new.username)',
            more='create table "audit log" (name text)',
        ),
    ),
    "a table that a trigger may not delete from": Broken(
        "trial write",
        "fail",
        "permission denied for table cached",
        trigger(
            "delete from cached where name = new.username", more="create table cached (name text)"
        ),
    ),
    "a table that a trigger names with its schema": Broken(
        "trial write",
        "fail",
        "permission denied for table entries",
        trigger(
            "insert into ledger.entries values (new.username)",
            more="create schema ledger; create table ledger.entries (name text);"
            "create table entries (name text); grant usage on schema ledger to public",
        ),
    ),
    "a sequence that a trigger may not use": Broken(
        "trial write",
        "fail",
        "permission denied for sequence versions",
        trigger("perform nextval('versions')", more="create sequence versions"),
    ),
    "a function that a trigger may not call": Broken(
        "trial write",
        "fail",
        "permission denied for function helper",
        trigger(
            "perform helper(1)",
            more="create function helper(integer) returns integer return $1;"
            "revoke execute on function helper from public",
        ),
    ),
    "a function that a trigger names with its schema": Broken(
        "trial write",
        "fail",
        "permission denied for function helper",
        trigger(
            "perform apart.helper(1)",
            more="create schema apart; grant usage on schema apart to public;"
            "create function apart.helper(integer) returns integer return $1;"
            "revoke execute on function apart.helper from public",
        ),
    ),
    "a schema that a trigger may not use": Broken(
        "trial write",
        "fail",
        "permission denied for schema hidden",
        trigger(
            "perform hidden.helper()",
            more="create schema hidden; create function hidden.helper() returns integer return 1",
        ),
    ),
    "a table that a trigger does not find": Broken(
        "trial write",
        "fail",
        r'relation "journal" does not exist.*with the search_path public',
        trigger(
            "insert into journal values (new.username)",
            more="create schema logs; create table logs.journal (name text);"
            "grant usage on schema logs to public; grant insert on logs.journal to public",
        ),
    ),
    "a trigger that objects": Broken(
        "trial write",
        "fail",
        r"scores are ours .*\(in host_trigger\(\), of a trigger on users\)",
        trigger("raise 'scores are ours'"),
    ),
    "a trigger that objects at the end": Broken(
        "trial write",
        "fail",
        "scores are ours",
        """create function late() returns trigger language plpgsql as
        $$ begin if current_user = 'builder_score_owner' then raise 'scores are ours'; end if;
        return null; end $$;
        create constraint trigger "Late" after update of builder_score on users
            deferrable initially deferred
            for each row when (new.builder_score > 50) execute function late()""",
        traces=True,
    ),
    "a trigger that discards the write": Broken(
        "trial write",
        "fail",
        "was not written for 1 of 1 users",
        trigger("new := null"),
    ),
    # what goes on
    "paused": Broken(
        "heartbeat",
        "warn",
        r"paused \(a move\)",
        "update builder_score.settings set paused = true, paused_reason = 'a move'",
    ),
    "autovacuum that is off for the queue": Broken(
        "queue",
        "warn",
        "autovacuum is off for the queue",
        "alter table builder_score.score_recalc_queue set (autovacuum_enabled = off)",
    ),
    "a queue that is full of dead rows": Broken(
        "queue",
        "warn",
        r"1\d\d,\d\d\d dead rows beside 0 live ones",
        """alter table builder_score.score_recalc_queue set (autovacuum_enabled = off);
        insert into builder_score.score_recalc_queue (priority, reason)
        select 20, 'x' from generate_series(1, 101000);
        delete from builder_score.score_recalc_queue;
        select pg_stat_force_next_flush()""",
    ),
    "a worker that waits for longer than a deadlock takes": Broken(
        "lock_timeout",
        "warn",
        "waits 600 ms for a lock, and deadlock_timeout is 1s",
        "update builder_score.settings set lock_timeout = '0.6 seconds'",
    ),
    "a publication of everything": Broken(
        "publications",
        "warn",
        "publication The Feed is FOR ALL TABLES",
        """create publication "The Feed" for all tables with (publish = 'insert, update')""",
        traces=True,
    ),
    "a publication that refuses updates": Broken(
        "publications",
        "fail",
        r"public\.users is published by feed and has no replica identity",
        "alter table users replica identity nothing; create publication feed for table users",
        ("trial write",),
        traces=True,
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=list(BROKEN))
def test_what_is_broken_is_said_and_mended_by_the_line_that_says_it(
    server: PrivateCluster, patient: Patient, healthy: str, broken: Broken
) -> None:
    try:
        with connect(healthy) as db:
            run(db, broken.how)
        findings = examine(healthy)
        assert {check for check, _, _ in not_ok(findings)} <= {broken.check, *broken.also}
        assert level_of(broken.check, findings) == broken.level
        assert any(re.search(broken.says, one["message"]) for one in of(broken.check, findings))
        rounds = 0
        while wrong := not_ok(findings):
            rounds += 1
            assert rounds <= 4, wrong
            first = [one for one in findings if one["level"] != "ok"]
            ours = [one for one in first if one["check"] == broken.check]
            mend(server, healthy, ours or first)
            with connect(healthy) as db:
                db.execute(HEARD)
            findings = examine(healthy)
        if not broken.traces:
            with connect(healthy) as db:
                run(db, "drop function if exists host_trigger cascade")
            patient.is_healthy(healthy)
    finally:  # roles are the cluster's
        server.psql("-c", "alter role builder_score_owner nologin nosuperuser")
        server.psql("-c", "revoke pg_monitor from builder_score_owner")
