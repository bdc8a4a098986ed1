"""``pyscore verify``: whom it calls wrong, on whichever server, and how it repairs."""

import json
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from pyscore import migrator
from pyscore.cli import verifying
from pyscore.cli.options import installed
from pyscore.cli.verifying import Finding, batches, repair, verify_batch
from pyscore.cluster import PrivateCluster
from tests.commands import call, error_line, output
from tests.community import add_project, add_user, configure, drain, queue, score
from tests.conftest import dsn
from tests.hosts import create_application
from tests.interleave import Sessions, until
from tests.standby import standby_of
from tests.terminal import on_terminal


@pytest.fixture
def people(db: Connection[Any]) -> dict[str, UUID]:
    """Four people whose scores are right."""
    configure(db, debounce_window="0")
    found = {name: add_user(db, name, bio="ships") for name in ("ada", "grace", "linus", "mary")}
    drain(db)
    return found


def falsify(db: Connection[Any], *users: UUID, value: int = 99) -> None:
    """Write scores as a restore or a replication does: no trigger sees it."""
    db.execute("set session_replication_role = replica")
    db.execute("update users set builder_score = %s where id = any(%s)", [value, list(users)])
    db.execute("reset session_replication_role")


def add_dead_letter(db: Connection[Any], user: UUID) -> None:
    db.execute(
        "insert into builder_score.score_dead_letter"
        " values (%s, 5, '22012', 'division by zero', now(), now())",
        [user],
    )


def poison_compute(db: Connection[Any]) -> None:
    """Have compute raise for whoever owns a project with the title "poison"."""
    db.execute("""
        create or replace view builder_score.host_projects as
        select p.id, p.owner_id, p.status::text as status,
               (p.github_stars / (p.title <> 'poison')::integer)::numeric as github_stars,
               p.impact_metrics::jsonb as impact_metrics
        from projects as p
    """)


def verify(database: str, *options: str, exit_code: int = 0) -> dict[str, Any]:
    done = call("verify", "--json", *options, "--dsn", database)
    assert (done.returncode, done.stderr) == (exit_code, ""), done.stderr
    return json.loads(done.stdout)


def counts(data: dict[str, Any]) -> tuple[int, ...]:
    """Checked, right, pending, wrong, dead letters, failing."""
    names = ("checked", "right", "pending", "wrong", "dead_letters", "failing")
    return tuple(data[name] for name in names)


# Whom it calls what -------------------------------------------------------------------------------


def test_all_right_ends_with_0(database: str, people: dict[str, UUID]) -> None:
    said = output(call("verify", "--dsn", database))
    assert said == "checked 4: 4 right, 0 pending, 0 wrong, 0 dead letters, 0 failing\n"
    data = verify(database)
    assert (counts(data), data["findings"]) == ((4, 4, 0, 0, 0, 0), [])


def miscount(db: Connection[Any]) -> None:
    db.execute("set session_replication_role = replica")
    db.execute("update builder_score.score_state set score = 4 where score = 3")
    db.execute("reset session_replication_role")


def test_what_ranks_rest_on_is_verified_and_repaired(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    assert verify(database)["miscounted"] == []
    miscount(db)
    done = call("verify", "--dsn", database)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines() == [
        "checked 4: 4 right, 0 pending, 0 wrong, 0 dead letters, 0 failing",
        "! 2 scores miscounted, so ranks are wrong: put right with: pyscore verify --repair",
        "  4: counted 0, 4 have it",
        "  3: counted 4, 0 have it",
    ]
    found = [
        {"score": 4, "counted": 0, "people": 4},
        {"score": 3, "counted": 4, "people": 0},
    ]
    assert verify(database, "--sample", "1", exit_code=3)["miscounted"] == found
    data = verify(database, "--repair")
    assert (data["recounted"], data["miscounted"]) == (found, [])
    assert verify(database, "--repair")["recounted"] == []

    db.execute("set session_replication_role = replica")
    db.execute("update builder_score.score_state set score = 3")
    db.execute("reset session_replication_role")
    said = output(call("verify", "--repair", "--dsn", database))
    assert said.splitlines()[1:] == ["2 scores counted anew"]


def test_nobody_is_all_right(database: str) -> None:
    assert counts(verify(database)) == (0, 0, 0, 0, 0, 0)


def test_a_wrong_score_ends_with_3_and_says_both_values_and_what_to_do(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    falsify(db, people["ada"])
    done = call("verify", "--dsn", database)
    assert (done.returncode, done.stderr) == (3, "")
    first, heading, row, advice = done.stdout.splitlines()
    assert first == "checked 4: 3 right, 0 pending, 1 wrong, 0 dead letters, 0 failing"
    assert heading.split() == ["user", "id", "username", "stored", "computed", "ago", "standing"]
    assert row.split()[:4] == [str(people["ada"]), "ada", "99", "3"]
    assert row.split()[-1] == "wrong"
    assert advice == "! 1 wrong: put right with: pyscore verify --repair"
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert score(db, people["ada"]) == 99, "it has only looked"

    (finding,) = verify(database, exit_code=3)["findings"]
    assert {**finding, "computed_at": None} == {
        "user_id": str(people["ada"]),
        "username": "ada",
        "stored": 99,
        "computed": 3,
        "computed_at": None,
        "standing": "wrong",
        "message": "",
    }


def test_pending_alone_is_right_enough(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    add_project(db, people["ada"], status="shipped")
    data = verify(database)
    assert counts(data) == (4, 3, 1, 0, 0, 0)
    assert [finding["standing"] for finding in data["findings"]] == ["pending"]


def test_a_dead_letter_whose_score_is_not_right_ends_with_3(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    add_dead_letter(db, people["ada"])
    add_dead_letter(db, people["grace"])
    falsify(db, people["ada"])
    assert counts(verify(database, exit_code=3)) == (4, 3, 0, 0, 1, 0)
    said = call("verify", "--dsn", database).stdout
    assert said.startswith("checked 4: 3 right, 0 pending, 0 wrong, 1 dead letter, 0 failing\n")
    assert said.endswith("! 1 dead letter: pyscore dead-letter list\n")
    falsify(db, people["grace"])
    said = call("verify", "--dsn", database).stdout
    assert said.startswith("checked 4: 2 right, 0 pending, 0 wrong, 2 dead letters, 0 failing\n")
    assert said.endswith("! 2 dead letters: pyscore dead-letter list\n")
    messages = {one["message"] for one in verify(database, exit_code=3)["findings"]}
    assert messages == {"22012: division by zero"}

    # who is queued is no dead letter for long
    db.execute("select builder_score.enqueue(%s)", [people["ada"]])
    found = verify(database, exit_code=3)["findings"]
    assert {(one["username"], one["standing"], one["message"]) for one in found} == {
        ("ada", "pending", ""),
        ("grace", "dead letter", "22012: division by zero"),
    }


def test_a_user_who_never_had_a_score_and_waits_for_none_is_wrong(
    database: str, db: Connection[Any]
) -> None:
    add_user(db, "ada")
    db.execute("update users set builder_score = null")
    db.execute("truncate builder_score.score_recalc_queue")
    done = call("verify", "--dsn", database)
    assert done.returncode == 3
    assert done.stdout.splitlines()[2].split()[1:] == ["ada", "none", "0", "never", "wrong"]


def test_a_user_for_whom_compute_raises_is_found_and_the_rest_is_checked(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    for name in ("grace", "mary"):
        add_project(db, people[name], title="poison")
    db.execute("truncate builder_score.score_recalc_queue")
    poison_compute(db)
    falsify(db, people["linus"])
    data = verify(database, exit_code=3)
    assert counts(data) == (4, 1, 0, 1, 0, 2)
    failing = [finding for finding in data["findings"] if finding["standing"] == "failing"]
    assert {finding["username"] for finding in failing} == {"grace", "mary"}
    assert {(one["stored"], one["computed"], one["message"]) for one in failing} == {
        (3, None, "22012: division by zero")
    }
    done = call("verify", "--dsn", database)
    assert "! grace fails with 22012: division by zero" in done.stdout
    assert "! 2 failing: " in done.stdout


def test_what_is_piped_is_neither_cut_nor_filled_up(database: str, db: Connection[Any]) -> None:
    name = "ada" * 50
    user = add_user(db, name)
    drain(db)
    falsify(db, user)
    lines = call("verify", "--dsn", database).stdout.splitlines()
    assert lines[2].split()[:2] == [str(user), name]
    assert [line for line in lines if line != line.rstrip()] == []


def test_names_cannot_play_tricks_on_the_terminal(database: str, db: Connection[Any]) -> None:
    user = add_user(db, "[red]\x1b[2J")
    drain(db)
    falsify(db, user)
    said = call("verify", "--dsn", database).stdout
    assert "[red]?[2J" in said


# A batch at a time --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [9, 10, 11, 25])
def test_everyone_is_checked_once_in_batches_that_are_transactions_of_their_own(
    database: str, db: Connection[Any], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(verifying, "BATCH", 10)
    users = [add_user(db, f"user{number}") for number in range(count)]
    sizes: list[int] = []
    seen: list[str] = []
    with installed(database) as connection:
        for ids in batches(connection, None):
            verify_batch(connection, ids)
            assert connection.info.transaction_status == TransactionStatus.IDLE
            sizes.append(len(ids))
            seen.extend(ids)
    assert sizes == [10] * (count // 10) + [count % 10] * (count % 10 > 0)
    assert seen == sorted(str(user) for user in users)


def test_twenty_are_listed_the_worst_first_and_json_has_all(
    database: str, db: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "BATCH", 10)
    users = [add_user(db, f"user{number}") for number in range(30)]
    drain(db)
    falsify(db, *users)
    for user in users[1:]:
        db.execute("select builder_score.enqueue(%s)", [user])
    done = call("verify", "--dsn", database)
    assert done.returncode == 3
    first, _, worst, *rest, more, advice = done.stdout.splitlines()
    assert first == "checked 30: 0 right, 29 pending, 1 wrong, 0 dead letters, 0 failing"
    assert worst.split()[1] == "user0"
    assert [row.split()[-1] for row in rest] == ["pending"] * 19
    assert more == "and 10 more; --json has all"
    assert advice.startswith("! 1 wrong")
    data = verify(database, exit_code=3)
    assert {finding["user_id"] for finding in data["findings"]} == set(map(str, users))


@pytest.mark.parametrize(("sample", "checked"), [(1, 1), (3, 3), (4, 4), (50, 4)])
def test_a_sample_is_of_different_people(
    database: str,
    db: Connection[Any],
    people: dict[str, UUID],
    monkeypatch: pytest.MonkeyPatch,
    sample: int,
    checked: int,
) -> None:
    monkeypatch.setattr(verifying, "BATCH", 2)
    falsify(db, *people.values())
    data = verify(database, "--sample", str(sample), exit_code=3)
    assert counts(data) == (checked, 0, 0, checked, 0, 0)
    assert len({finding["user_id"] for finding in data["findings"]}) == checked


@pytest.mark.parametrize("sample", ["0", "9223372036854775808", "99999999999999999999999"])
def test_a_sample_that_is_none_is_a_usage_error(sample: str) -> None:
    assert "--sample" in error_line(call("verify", "--sample", sample), 2)


def test_the_largest_sample_is_of_everyone(database: str, people: dict[str, UUID]) -> None:
    assert counts(verify(database, "--sample", "9223372036854775807")) == (4, 4, 0, 0, 0, 0)


def test_progress_is_drawn_on_a_terminal_and_gone_from_the_output(
    database: str, people: dict[str, UUID]
) -> None:
    with on_terminal("verify", "--dsn", database) as running:
        assert running.read_stdout().startswith("checked 4: 4 right")
        assert running.returncode == 0
    assert "verifying" in running.shown
    assert "4/4" in running.shown


def test_what_a_float_column_can_hold_is_shown_and_repaired(
    server: PrivateCluster, empty_database: str
) -> None:
    stored = {"ada": "NaN", "grace": "Infinity", "linus": "-Infinity", "mary": "-1", "eve": "5e7"}
    with psycopg.connect(empty_database, autocommit=True) as db:
        create_application(db, score="double precision")
        migrator.upgrade(empty_database)
        for name, value in stored.items():
            add_user(db, name, bio="ships")
            drain(db)
            db.execute("set session_replication_role = replica")
            db.execute(
                "update users set builder_score = %s::text::float8 where username = %s",
                [value, name],
            )
            db.execute("reset session_replication_role")
        db.execute("truncate builder_score.score_recalc_queue")
        done = call("verify", "--dsn", empty_database)
        rows = [line.split() for line in done.stdout.splitlines() if line.endswith("wrong")]
        shown = {row[1]: row[2] for row in rows}
        assert shown == {**stored, "eve": "50000000"}
        assert counts(verify(empty_database, exit_code=3)) == (5, 0, 0, 5, 0, 0)
        data = verify(empty_database, "--repair")
        assert counts(data) == (5, 5, 0, 0, 0, 0)
        assert {done["new"] for done in data["repairs"]} == {15}
        assert db.execute("select distinct builder_score from users").fetchall() == [(15,)]


# Where nothing can be written ---------------------------------------------------------------------


def test_a_read_only_session_can_verify_and_not_repair(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    falsify(db, people["ada"])
    read_only = {"PGOPTIONS": "-c default_transaction_read_only=on"}
    done = call("verify", "--json", "--dsn", database, **read_only)
    assert done.returncode == 3
    assert counts(json.loads(done.stdout)) == (4, 3, 0, 1, 0, 0)
    line = error_line(call("verify", "--repair", "--dsn", database, **read_only))
    assert "the session is read only" in line
    assert score(db, people["ada"]) == 99


@pytest.fixture(scope="module")
def replica() -> Iterator[tuple[PrivateCluster, PrivateCluster]]:
    """A primary with our schema and one wrong score, and its hot standby."""
    settings: dict[str, Any] = {"fsync": False, "max_connections": 20}
    with PrivateCluster(settings=settings, tcp=False) as primary:
        migrator.upgrade(primary.conninfo())
        with psycopg.connect(primary.conninfo(), autocommit=True) as connection:
            ada = add_user(connection, "ada", bio="ships")
            add_user(connection, "grace")
            drain(connection)
            falsify(connection, ada)
        with standby_of(primary, settings=settings) as standby:
            yield primary, standby


def test_a_hot_standby_can_verify_and_not_repair(
    replica: tuple[PrivateCluster, PrivateCluster],
) -> None:
    primary, standby = replica
    data = verify(standby.conninfo(), exit_code=3)
    assert counts(data) == (2, 1, 0, 1, 0, 0)
    assert [finding["username"] for finding in data["findings"]] == ["ada"]
    line = error_line(call("verify", "--repair", "--dsn", standby.conninfo()))
    assert "this server is a replica" in line
    assert "run it on the primary" in line

    assert counts(verify(primary.conninfo(), "--repair")) == (2, 2, 0, 0, 0, 0)
    with psycopg.connect(standby.conninfo(), autocommit=True) as connection:
        until(
            lambda: (
                connection.execute("select count(*) from users where builder_score = 99").fetchall()
                == [(0,)]
            ),
            "the repair has reached the standby",
        )
    assert counts(verify(standby.conninfo())) == (2, 2, 0, 0, 0, 0)


def test_a_hot_standby_can_make_the_page(replica: tuple[PrivateCluster, PrivateCluster]) -> None:
    _, standby = replica
    assert "grace" in output(call("report", "-o", "-", "--dsn", standby.conninfo()))


# Repairing ----------------------------------------------------------------------------------------


def test_repair_recomputes_who_is_wrong_and_nobody_else(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    falsify(db, people["ada"])
    falsify(db, people["mary"], value=1)
    add_project(db, people["grace"], status="shipped")
    said = output(call("verify", "--repair", "--dsn", database))
    *repairs, summary, _, pending = said.splitlines()
    assert sorted(repairs) == ["ada: 99 -> 3", "mary: 1 -> 3"]
    assert summary == "checked 4: 3 right, 1 pending, 0 wrong, 0 dead letters, 0 failing"
    assert pending.split()[1] == "grace"
    assert (score(db, people["ada"]), score(db, people["mary"])) == (3, 3)
    assert score(db, people["grace"]) == 3, "her row is queued: she is the worker's"
    assert [row[0] for row in queue(db)] == [people["grace"]]


def test_repair_in_json_says_what_it_wrote(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    falsify(db, people["ada"])
    data = verify(database, "--repair")
    assert counts(data) == (4, 4, 0, 0, 0, 0)
    assert data["repairs"] == [
        {
            "user_id": str(people["ada"]),
            "username": "ada",
            "old": 99,
            "new": 3,
            "queued": False,
        }
    ]
    assert verify(database, "--repair")["repairs"] == []
    assert "repairs" not in verify(database)


def test_many_repairs_are_listed_by_the_first_twenty(database: str, db: Connection[Any]) -> None:
    users = [add_user(db, f"user{number}") for number in range(23)]
    drain(db)
    falsify(db, *users)
    lines = output(call("verify", "--repair", "--dsn", database)).splitlines()
    assert sum(line.endswith(": 99 -> 0") for line in lines) == 20
    assert lines[20:] == [
        "and 3 more repaired; --json has all",
        "checked 23: 23 right, 0 pending, 0 wrong, 0 dead letters, 0 failing",
    ]


def test_a_user_whose_row_is_held_is_queued_instead(
    database: str, db: Connection[Any], people: dict[str, UUID], sessions: Sessions
) -> None:
    falsify(db, people["ada"], people["grace"])
    app = sessions("app")
    app.run("begin")
    app.run("select from users where username = 'ada' for update")
    said = output(call("verify", "--repair", "--dsn", database))
    assert "ada: queued, since somebody holds the row" in said
    assert "grace: 99 -> 3" in said
    assert "checked 4: 3 right, 1 pending, 0 wrong" in said
    app.run("rollback")
    assert queue(db) == [(people["ada"], None, 0, "verify repair")]
    drain(db)
    assert score(db, people["ada"]) == 3


def test_a_score_that_does_not_stay_repaired_is_still_wrong(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    falsify(db, people["ada"])
    db.execute("""
        create function spoil() returns trigger language plpgsql as
        'begin new.builder_score := 42; return new; end';
        create trigger spoil before update on users for each row execute function spoil();
        alter table users enable always trigger spoil;
    """)
    # nothing but the trigger's own writing is to be seen
    db.execute("alter table users disable trigger user")
    db.execute("alter table users enable trigger spoil")
    done = call("verify", "--repair", "--dsn", database)
    assert done.returncode == 3
    assert "1 wrong, 0 dead letters" in done.stdout
    assert "! 1 wrong: written again by something else" in done.stdout


def test_who_cannot_be_repaired_keeps_nobody_else_from_it(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    falsify(db, *people.values())
    db.execute("""
        create function object() returns trigger language plpgsql as
        'begin raise exception ''will not have %'', new.username; end';
        create trigger object before update on users for each row
        when (new.username = 'grace') execute function object();
    """)
    data = verify(database, "--repair", exit_code=3)
    assert counts(data) == (4, 3, 0, 0, 0, 1)
    assert {done["username"] for done in data["repairs"]} == {"ada", "linus", "mary"}
    (finding,) = data["findings"]
    assert (finding["username"], finding["stored"]) == ("grace", 99)
    assert finding["message"] == "P0001: will not have grace"


def test_dead_letters_are_left_to_people(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    add_dead_letter(db, people["ada"])
    falsify(db, people["ada"])
    data = verify(database, "--repair", exit_code=3)
    assert (counts(data), data["repairs"]) == ((4, 3, 0, 0, 1, 0), [])


def test_a_user_who_is_gone_by_now_is_no_trouble(database: str, db: Connection[Any]) -> None:
    gone = Finding(str(uuid4()), "ada", None, None, None, "wrong")
    with installed(database) as connection:
        assert list(repair(connection, [gone])) == [(None, [])]
    assert queue(db) == []


# Rights and states --------------------------------------------------------------------------------


def test_the_operator_may_verify_and_repair(
    server: PrivateCluster, database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    role = f"verify_{uuid4().hex[:12]}"
    server.psql("-c", f"create role {role} login in role builder_score_operator")
    try:
        falsify(db, people["ada"])
        address = dsn(server, str(conninfo_to_dict(database)["dbname"]), user=role)
        assert counts(verify(address, exit_code=3)) == (4, 3, 0, 1, 0, 0)
        assert counts(verify(address, "--repair")) == (4, 4, 0, 0, 0, 0)
    finally:
        server.psql("-c", f"drop role {role}")


@pytest.mark.parametrize("options", [(), ("--repair",), ("--sample", "3")])
def test_a_detached_database_says_what_to_do(
    database: str, db: Connection[Any], options: Sequence[str]
) -> None:
    db.execute("select builder_score.detach()")
    line = error_line(call("verify", *options, "--dsn", database))
    assert "detached" in line
    assert "builder_score.attach()" in line
