"""``pyscore explain``: what it says about a user, in every state a user can be in."""

import json
import re
from threading import Thread
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection

from tests.commands import Done, call, error_line, output, pyscore
from tests.community import add_project, add_user, configure, drain, one
from tests.interleave import Sessions, until
from tests.poison import poison
from tests.screen import on_screen

Db = Connection[Any]

BEATING = """
update builder_score.worker_status
set heartbeat_at = clock_timestamp(), started_at = clock_timestamp() where worker = 'resident'
"""


@pytest.fixture
def ada(db: Db) -> UUID:
    """Somebody with a score of 13."""
    ada = add_user(db, "ada", bio="ships")
    add_project(db, ada, status="shipped")
    drain(db)
    return ada


def explain(database: str, user: str = "ada") -> str:
    return output(call("explain", user, "--dsn", database))


def facts(said: str) -> dict[str, list[str]]:
    """The lines below the signals, wrapped ones joined, by their label."""
    found: dict[str, list[str]] = {}
    label = ""
    for line in said.split("\n\n")[2].splitlines():
        head, text = line[:8].strip(), line[10:].strip()
        if head:
            label = head
            found.setdefault(label, []).append(text)
        else:
            found[label][-1] += f" {text}"
    return found


def data(done: Done) -> dict[str, Any]:
    return json.loads(output(done))


def test_signals_total_and_tier(database: str, ada: UUID) -> None:
    first, signals, _ = explain(database).split("\n\n")
    assert first == "ada: 13, tier 0-30 (1 of 4)"
    heading, *rows, total = [line.split() for line in signals.splitlines()]
    assert heading == ["signal", "raw", "points", "of"]
    assert [row[0] for row in rows] == ["shipped", "vouches", "impact", "profile", "age"]
    assert rows[0] == ["shipped", "1", "10.00", "30", "█" * 10 + "░" * 20]
    assert rows[3] == ["profile", "0.166667", "2.50", "15", "█" * 2 + "░" * 13]
    assert total == ["total", "12.50", "100"]


def test_what_is_right_and_quiet_says_so(database: str, ada: UUID) -> None:
    said = facts(explain(database, str(ada)))
    assert said.keys() == {"id", "computed", "queued"}
    assert said["id"] == [str(ada)]
    assert said["queued"] == ["nothing"]
    assert " s ago, " in said["computed"][0]


def test_plain_where_there_is_no_terminal(database: str, db: Db, ada: UUID) -> None:
    for _ in range(3):
        add_project(db, ada, status="shipped")
    configure(db, paused=True, paused_reason="a long reason " * 10)
    said = explain(database)
    assert "\x1b" not in said
    assert "a long reason " * 10 in said, "nothing is cut or folded"
    assert [line for line in said.splitlines() if line != line.rstrip()] == []


def test_fits_the_terminal(database: str, db: Db, ada: UUID) -> None:
    configure(db, paused=True, paused_reason="a long reason " * 10)
    said = on_screen("explain", "ada", "--dsn", database)
    assert max(map(len, said.splitlines())) <= 80
    assert " ".join(said.split()).count("a long reason") == 10, "nothing is cut"


def test_an_event_waits_for_the_debounce_window(database: str, db: Db, ada: UUID) -> None:
    configure(db, debounce_window="1 day")
    for _ in range(3):
        add_project(db, ada, status="shipped")
    said = facts(explain(database))
    assert said["now"] == ["it would be 26; what is queued will see to it"]
    (queued,) = said["queued"]
    assert queued.startswith("project inserted, 3 times, medium priority, the first ")
    (due,) = said["due"]
    assert re.fullmatch(r"in (1 d|23 h 59 min): at most one computation in 1 d \(debounce\)", due)


def test_a_first_computation_is_due_now(database: str, db: Db) -> None:
    add_user(db, "ada", bio="ships", builder_score=None)
    db.execute("select builder_score.enqueue_everyone('new formula')")
    said = explain(database)
    assert said.startswith("ada: no score yet\n")
    found = facts(said)
    assert found["computed"] == ["never"]
    assert [line.rsplit(",", 1)[0] for line in found["queued"]] == [
        "user inserted, low priority",
        "new formula, for everyone, low priority",
    ]
    assert found["due"] == ["now, but nothing runs the worker: pyscore status"]
    db.execute(BEATING.encode())
    assert facts(explain(database))["due"] == ["now"]
    configure(db, paused=True, paused_reason="maintenance")
    found = facts(explain(database))
    assert found["due"] == ["now, but paused"]
    assert found["paused"] == ["maintenance; go on with: pyscore resume"]


def test_a_project_that_is_queued_concerns_its_owner(database: str, db: Db, ada: UUID) -> None:
    db.execute(
        "insert into builder_score.score_recalc_queue (project_id, priority, reason)"
        " select id, 10, 'project transferred' from projects"
    )
    (queued,) = facts(explain(database))["queued"]
    assert queued.startswith("project transferred, for a project of theirs, medium priority, ")


def test_a_wrong_score_with_nothing_queued_is_told_apart(database: str, db: Db, ada: UUID) -> None:
    db.execute("update users set builder_score = 99")
    assert "what is queued will see to it" in facts(explain(database))["now"][0]
    db.execute("truncate builder_score.score_recalc_queue")
    assert facts(explain(database))["now"] == [
        "it would be 13, and nothing is queued: that should not be. "
        "Mend it with: pyscore recompute ada"
    ]
    assert data(call("explain", "ada", "--json", "--dsn", database))["standing"] == "wrong"


def test_an_account_that_only_grew_older_is_not_wrong(database: str, db: Db, ada: UUID) -> None:
    db.execute("update users set created_at = now() - interval '110 days'")
    db.execute("truncate builder_score.score_recalc_queue")
    db.execute("update builder_score.score_state set computed_at = now() - interval '100 days'")
    assert facts(explain(database))["now"] == [
        "it would be 16: the account is older now. Ages are counted in once a score is 7 d old; "
        "at once with: pyscore recompute ada"
    ]


def test_backoff_and_dead_letter_say_what_went_wrong(database: str, db: Db) -> None:
    poison(db)
    add_user(db, "eve", bio="ships")
    configure(db, retry_base="1 hour", retry_cap="1 day", max_attempts=2)
    drain(db)
    (due,) = facts(explain(database, "eve"))["due"]
    assert re.fullmatch(r"in [\dhmins ]+: 1 failed attempt so far \(backoff\)", due)
    found = data(call("explain", "eve", "--json", "--dsn", database))
    assert (found["attempts"], found["due_at"]) == (1, found["retry_at"])
    db.execute("update builder_score.score_state set retry_at = null")
    db.execute("update builder_score.score_recalc_queue set not_before = now()")
    drain(db)
    said = facts(explain(database, "eve"))
    (given_up,) = said["given up"]
    assert given_up.startswith("after 2 attempts, ")
    assert "P0001 will not have eve" in given_up
    assert given_up.endswith("with: pyscore dead-letter retry eve")
    assert said["now"] == ["it would be 3"]
    found = data(call("explain", "eve", "--json", "--dsn", database))
    assert found["dead_letter"]["sqlstate"] == "P0001"
    assert found["standing"] == "dead letter"


def test_a_signal_that_is_switched_off_is_shown_as_off(database: str, db: Db, ada: UUID) -> None:
    db.execute("update builder_score.signals set max_points = 0 where signal = 'shipped'")
    shipped = explain(database).split("\n\n")[1].splitlines()[1]
    assert shipped.split() == ["shipped", "1", "off"]


def test_the_score_before_the_last_change(database: str, db: Db, ada: UUID) -> None:
    add_project(db, ada, status="shipped")
    db.execute("select builder_score.recalculate(%s)", [ada])
    assert facts(explain(database))["computed"][0].endswith("; before its last change it was 13")


def test_json_is_what_the_database_says(database: str, db: Db, ada: UUID) -> None:
    add_project(db, ada, status="shipped")
    found = data(call("explain", "ada", "--json", "--dsn", database))
    assert (found["user"], found["user_id"], found["username"]) == ("ada", str(ada), "ada")
    assert (found["score"], found["score_now"], found["standing"]) == (13, 18, "pending")
    assert found["points"] == pytest.approx(18.349625)
    assert found["tier"] == {"number": 1, "of": 4, "low": 0, "high": 30}
    rows = db.execute("select * from builder_score.explain(%s)", [ada]).fetchall()
    assert [tuple(signal.values()) for signal in found["signals"]] == [
        (signal, pytest.approx(float(raw)), pytest.approx(points), most)
        for signal, raw, points, most in rows
    ]
    (row,) = found["pending"]
    assert (row["stands_for"], row["priority"], row["reason"]) == ("user", 10, "project inserted")
    computed_at = one(db, "select computed_at from builder_score.score_state")
    assert found["computed_at"] == computed_at.isoformat()
    assert (found["attempts"], found["retry_at"], found["dead_letter"]) == (0, None, None)
    assert (found["paused"], found["scheduler"]) == (False, "none")


def test_all_of_it_is_one_moment(database: str, db: Db, ada: UUID, sessions: Sessions) -> None:
    add_project(db, ada, status="shipped")
    keeper = sessions("keeper")
    keeper.run("begin")
    # explain has seen the queue by the time it gets here, and waits
    keeper.run("lock table builder_score.score_dead_letter in access exclusive mode")

    def recalculate() -> None:
        blocked = "select count(*) from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
        until(lambda: one(db, blocked, keeper.pid) == 1, "explain waits")
        keeper.run("select builder_score.recalculate(%s)", [ada])
        keeper.run("commit")

    other = Thread(target=recalculate)
    other.start()
    found = data(call("explain", "ada", "--json", "--dsn", database))
    other.join()
    assert (found["score"], found["standing"], len(found["pending"])) == (13, "pending", 1)
    found = data(call("explain", "ada", "--json", "--dsn", database))
    assert (found["score"], found["standing"], len(found["pending"])) == (18, None, 0)


def test_works_where_nothing_may_be_written(database: str, db: Db, ada: UUID) -> None:
    name = one(db, "select current_database()")
    db.execute(f"alter database {name} set default_transaction_read_only = on".encode())
    assert explain(database).startswith("ada: 13")


@pytest.mark.parametrize("name", ["", "  "])
@pytest.mark.parametrize("command", ["explain", "recompute"])
def test_no_name_at_all(database: str, db: Db, command: str, name: str) -> None:
    add_user(db, name)
    line = error_line(call(command, name, "--dsn", database), 2)
    assert "expected an id or a username" in line


def test_a_username_of_several_people_is_said_to_be_one(database: str, db: Db) -> None:
    low, _, other = sorted(add_user(db, name) for name in ("ada", "bob", "cyd"))
    db.execute("alter table users drop constraint users_username_key")
    db.execute("update users set username = 'ada'")
    done = call("explain", "ada", "--dsn", database)
    assert facts(output(done))["id"] == [str(low)]
    assert done.stderr == (
        f"3 people have the username ada: this is about the one with id {low}; "
        "name another by their id\n"
    )
    assert call("explain", str(other), "--dsn", database).stderr == ""
    # an id wins over a username
    db.execute("update users set username = %s where id <> %s", [str(other), other])
    done = call("explain", str(other), "--dsn", database)
    assert (facts(output(done))["id"], done.stderr) == ([str(other)], "")


def test_no_number_of_json(database: str, db: Db, ada: UUID) -> None:
    db.execute("select builder_score.detach()")
    db.execute("alter table users alter column builder_score type double precision")
    db.execute("select builder_score.attach()")
    db.execute("update users set builder_score = 'NaN'")
    assert explain(database).startswith("ada: NaN, tier 0-30")
    said = output(call("explain", "ada", "--json", "--dsn", database))
    found = json.loads(said, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["score"] == "NaN"


def test_nobody_of_that_name(database: str) -> None:
    nobody = str(uuid4())
    for user in ("nobody", nobody):
        line = error_line(call("explain", user, "--dsn", database))
        assert f"no such user: {user}; expected an id or a username" in line


def test_a_username_cannot_play_with_the_terminal(database: str, db: Db) -> None:
    add_user(db, "\x1b[31mred\u202e[bold]")
    said = explain(database, "\x1b[31mred\u202e[bold]")
    assert said.startswith("?[31mred?[bold]: ")
    line = error_line(call("explain", "no\x1b[2Jbody", "--dsn", database))
    assert "no such user: no?[2Jbody;" in line


def test_characters_that_no_database_holds(database: str) -> None:
    line = error_line(call("explain", "a\udcff", "--dsn", database), 2)
    assert "a? cannot name a user: it holds bytes that are not text in this shell's locale" in line


def test_a_terminal_without_unicode(database: str, db: Db, ada: UUID) -> None:
    db.execute("update users set username = 'ż' where username = 'ada'")
    said = output(pyscore("explain", str(ada), "--dsn", database, PYTHONIOENCODING="ascii"))
    assert said.startswith("?: 13,")
    assert said.split("\n\n")[1].splitlines()[1].split()[4] == "#" * 10 + "." * 20
    said = output(pyscore("leaderboard", "--dsn", database, PYTHONIOENCODING="ascii"))
    assert said.splitlines()[1].split() == ["1", "?", "13", "###", "0-30"]
