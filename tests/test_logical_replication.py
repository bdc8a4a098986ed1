"""Subscribers of the application's tables: prepared as migrate says, they go on; one takes over."""

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from pyscore.cluster import PrivateCluster
from tests.commands import call, error_line, output, psql
from tests.community import configure, drain, one
from tests.conftest import dsn
from tests.hosts import create_application
from tests.interleave import assert_right, settle, until
from tests.test_unseen import differing, found, verified


@pytest.fixture(scope="module")
def cluster() -> Iterator[PrivateCluster]:
    settings = {
        "fsync": False,
        "wal_level": "logical",
        "wal_retrieve_retry_interval": "50ms",
        "max_logical_replication_workers": 8,
    }
    with PrivateCluster(settings=settings) as cluster:
        yield cluster


@contextmanager
def application(cluster: PrivateCluster, name: str) -> Generator[Connection[Any]]:
    """Create a database with an application's tables and nothing in them."""
    cluster.psql("-c", f"create database {name}")
    with psycopg.connect(dsn(cluster, name), autocommit=True) as db:
        create_application(db, key="bigint")
        db.execute("create unique index on project_collaborators (project_id, user_id)")
        yield db
        if subscriptions(db):
            db.execute("drop subscription feed")
    cluster.psql("-c", f"drop database {name} with (force)")


@pytest.fixture
def publisher(cluster: PrivateCluster) -> Iterator[Connection[Any]]:
    with application(cluster, "publisher") as db:
        yield db


@pytest.fixture
def subscriber(cluster: PrivateCluster, publisher: Connection[Any]) -> Iterator[Connection[Any]]:
    with application(cluster, "subscriber") as db:
        yield db


def subscribe(cluster: PrivateCluster, publisher: Connection[Any], db: Connection[Any]) -> None:
    # within one server the slot has to be made apart, else CREATE SUBSCRIPTION waits for itself
    publisher.execute("select pg_create_logical_replication_slot('feed', 'pgoutput')")
    address = make_conninfo(dsn(cluster, "publisher"))
    db.execute(
        f"create subscription feed connection '{address}' publication feed"
        " with (create_slot = false)".encode()
    )


def subscriptions(db: Connection[Any]) -> int:
    return one(
        db,
        "select count(*) from pg_subscription as s join pg_database as d on d.oid = s.subdbid"
        " where d.datname = current_database()",
    )


def migrate(cluster: PrivateCluster, db: Connection[Any], *options: str) -> None:
    """Install without a debounce window."""
    output(call("migrate", *options, "--dsn", dsn(cluster, db.info.dbname)))
    configure(db, debounce_window="0")


def refusal(cluster: PrivateCluster) -> str:
    return error_line(call("migrate", "--dsn", dsn(cluster, "publisher")))


def live(db: Connection[Any], name: str) -> None:
    """Sign up, ship, and be vouched for by everybody."""
    db.execute(f"insert into users (username, email, bio) values ('{name}', '', 'x')".encode())
    db.execute(
        f"""
        insert into projects (owner_id, title, status)
            select id, '', 'shipped' from users where username = '{name}';
        insert into project_collaborators (project_id, user_id, status)
            select p.id, u.id, 'confirmed'
            from projects as p join users as u on u.id <> p.owner_id
            on conflict do nothing;
    """.encode()
    )


SCORES = "select username, builder_score from users order by username"


def until_same(publisher: Connection[Any], subscriber: Connection[Any]) -> None:
    """Wait until the subscriber has what the publisher has; it never met an error."""
    wanted = publisher.execute(SCORES).fetchall()
    # a table's first copy is a worker's of its own
    copied = "select bool_and(srsubstate in ('r', 's')) from pg_subscription_rel"
    until(lambda: one(subscriber, copied), "every table is copied")
    until(lambda: subscriber.execute(SCORES).fetchall() == wanted, "the subscriber has it all")
    assert one(subscriber, "select sum(apply_error_count) from pg_stat_subscription_stats") == 0


def test_a_subscriber_without_us_gets_scores_once_it_has_the_column_that_migrate_names(
    cluster: PrivateCluster, publisher: Connection[Any], subscriber: Connection[Any]
) -> None:
    publisher.execute("create publication feed for table users, projects, project_collaborators")
    subscribe(cluster, publisher, subscriber)
    line = refusal(cluster)
    statement = re.search(r"On each subscriber: (ALTER TABLE .*?); then here: (.*)$", line)
    assert statement is not None, line
    subscriber.execute(statement[1].encode())
    migrate(cluster, publisher, *statement[2].split()[2:])
    live(publisher, "ada")
    live(publisher, "bob")
    drain(publisher)
    assert publisher.execute(SCORES).fetchall() == [("ada", 33), ("bob", 33)]
    until_same(publisher, subscriber)
    publisher.execute("delete from users where username = 'ada'")
    settle(publisher)
    until_same(publisher, subscriber)


def test_a_subscriber_with_us_is_given_its_scores_and_computes_its_own_when_it_takes_over(
    cluster: PrivateCluster, publisher: Connection[Any], subscriber: Connection[Any]
) -> None:
    migrate(cluster, publisher)
    publisher.execute("create publication feed for table users, projects, project_collaborators")
    live(publisher, "ada")
    drain(publisher)
    migrate(cluster, subscriber)
    subscriber.execute("update builder_score.settings set paused = true")
    subscribe(cluster, publisher, subscriber)
    until_same(publisher, subscriber)  # copied
    live(publisher, "bob")
    drain(publisher)
    until_same(publisher, subscriber)  # applied
    # in neither case do our triggers fire: session_replication_role is replica
    queued = "select count(*) from builder_score.score_recalc_queue"
    assert one(subscriber, queued) == 0
    assert one(subscriber, "select count(*) from builder_score.verify()") == 0

    # what the publisher has not computed yet is unseen here: verify finds it, and mends it
    with publisher.transaction():  # applied as a whole
        publisher.execute("update users set bio = null where username = 'bob'")
        publisher.execute("insert into users (username, email, bio) values ('eve', '', 'x')")
    until_same(publisher, subscriber)
    assert one(subscriber, queued) == 0
    address = dsn(cluster, "subscriber")
    wrong = found(verified(address, exit_code=3), "wrong")
    names = "select array_agg(username order by username) from users where id::text = any(%s)"
    assert one(subscriber, names, list(wrong)) == ["bob", "eve"]
    assert wrong == differing(subscriber)
    verified(address, "--repair", exit_code=0)
    assert differing(subscriber) == {}
    drain(publisher)
    until_same(publisher, subscriber)  # the publisher came to the same

    live(publisher, "carol")  # whose score is not computed before the publisher is lost
    until_same(publisher, subscriber)
    subscriber.execute("drop subscription feed")
    subscriber.execute("update builder_score.settings set paused = false")
    subscriber.execute("select * from builder_score.attach()")
    for table in ("users", "projects", "project_collaborators"):  # as after every such move
        subscriber.execute(
            f"select setval(pg_get_serial_sequence('{table}', 'id'), max(id)) from {table}".encode()
        )
    live(subscriber, "dave")
    settle(subscriber)
    assert_right(subscriber)


def test_a_subscriber_of_all_tables_goes_on_after_the_script_and_may_take_over(
    cluster: PrivateCluster, publisher: Connection[Any], subscriber: Connection[Any]
) -> None:
    publisher.execute("create publication feed for all tables")
    subscribe(cluster, publisher, subscriber)
    live(publisher, "ada")
    until(
        lambda: len(subscriber.execute(SCORES.replace(", builder_score", "")).fetchall()) == 1, ""
    )
    line = refusal(cluster)
    advice = (
        "On each subscriber run the script that `pyscore migrate --sql` prints, then (.*?); then"
    )
    found = re.search(advice, line)
    assert found is not None, line
    psql(cluster, dsn(cluster, "subscriber"), output(call("migrate", "--sql")))
    subscriber.execute(found[1].encode())
    migrate(cluster, publisher, "--subscribers-ready")
    live(publisher, "bob")
    drain(publisher)
    until_same(publisher, subscriber)
    # what is new to the publication is left out until the subscription is refreshed
    assert one(subscriber, "select count(*) from builder_score.score_state") == 0

    subscriber.execute("alter subscription feed refresh publication with (copy_data = false)")
    live(publisher, "carol")
    drain(publisher)
    until_same(publisher, subscriber)
    states = "select count(*) from builder_score.score_state"
    # an update of a row that was not copied is left out
    until(lambda: one(subscriber, states) == 1, "our own tables are replicated too, from now on")
    live(publisher, "dave")  # queued, and never drained
    until(
        lambda: (
            one(subscriber, "select max(id) from builder_score.score_recalc_queue")
            == one(publisher, "select max(id) from builder_score.score_recalc_queue")
        ),
        "the queue is replicated too",
    )

    subscriber.execute("drop subscription feed")
    subscriber.execute("update builder_score.settings set paused = false, debounce_window = '0'")
    # sequences are not replicated; attach() sees to that of the queue, and so does the worker
    newest = one(subscriber, "select max(id) from builder_score.score_recalc_queue")
    sequence = "select last_value from builder_score.score_recalc_queue_id_seq"
    assert one(subscriber, sequence) < newest
    subscriber.execute("select * from builder_score.attach()")
    assert one(subscriber, sequence) >= newest
    for table in ("users", "projects", "project_collaborators"):
        subscriber.execute(
            f"select setval(pg_get_serial_sequence('{table}', 'id'), max(id)) from {table}".encode()
        )
    live(subscriber, "eve")
    settle(subscriber)
    subscriber.execute("select builder_score.housekeeping()")  # some scores came without counts
    assert_right(subscriber)
