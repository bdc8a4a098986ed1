"""The life of an application beside us, on every host schema: each score right, and explained."""

from collections.abc import Iterator

import pytest

from tests.host_databases import HostDatabase, HostDatabases, install
from tests.host_schemas import HostSchema
from tests.interleave import assert_right, settle
from tests.oracle import scores


@pytest.fixture
def before_us(host_databases: HostDatabases, host_schema: HostSchema) -> Iterator[HostDatabase]:
    """An application's database before us."""
    with host_databases.before_us(host_schema) as host:
        yield host


def test_every_event_is_scored_right(before_us: HostDatabase) -> None:
    app, db = before_us.app, before_us.db
    before = app.sign_up("before")
    app.start(before, "shipped")
    install(before_us.address, db, before_us.schema)
    settle(db)
    assert_right(db)

    ann, bob, eve = (app.sign_up(name) for name in ("ann", "bob", "eve"))
    engine, radio = app.start(ann), app.start(bob, "shipped")
    app.invite(engine, bob)
    app.invite(radio, eve)
    settle(db)
    assert_right(db)

    app.run("update project_collaborators set status = 'confirmed'")
    app.run("update projects set status = 'shipped' where id = %s", engine)
    if app.has("users", "bio"):
        app.run("update users set bio = 'ships'")
    app.run("update users set builder_score = 77 where id = %s", eve)
    settle(db)
    assert_right(db)

    app.run("update projects set owner_id = %s where id = %s", before, engine)
    app.run("update project_collaborators set status = 'pending' where user_id = %s", eve)
    settle(db)
    assert_right(db)

    app.run("delete from projects where id = %s", engine)
    app.run("delete from users where id = %s", bob)
    settle(db)
    assert_right(db)

    app.run("truncate users, projects, project_collaborators")
    settle(db)
    assert_right(db)


def test_every_signal_is_what_the_oracle_says_and_explained(host: HostDatabase) -> None:
    app, db = host.app, host.db
    full, half, new = (app.sign_up(name) for name in ("full", "half", "new"))
    counted = {"github_stars": 120, "impact_metrics": '{"users": 4200, "stars": 7}'}
    known = {name: value for name, value in counted.items() if app.has("projects", name)}
    radio = app.start(full, "shipped", **known)
    app.start(full, "shipped")
    app.invite(radio, half, "confirmed")
    app.invite(app.start(half, "in_progress", **known), new, "confirmed")
    if app.has("users", "bio"):
        app.run("update users set bio = 'ships' where id in (%s, %s)", full, new)
    if app.has("users", "contact_links"):
        app.run("""update users set contact_links = '{"web": "x"}' where id = %s""", full)
        app.run("""update users set contact_links = '["web"]' where id = %s""", half)
    if app.has("users", "created_at"):
        ago = "update users set created_at = now() - %s::interval where id = %s"
        app.run(ago, "12345 hours", full)
        app.run(ago, "100000 hours", half)  # beyond what counts
    settle(db)
    assert_right(db)

    expected = scores(db)
    for user, score in expected.items():
        explained = db.execute(
            "select signal, raw, points from builder_score.explain(%s)", [user]
        ).fetchall()
        assert {name: (float(raw), points) for name, raw, points in explained} == {
            name: (pytest.approx(float(signal.raw)), pytest.approx(signal.points))
            for name, signal in score.signals.items()
        }
        # and what the application reads is their sum, to what its column holds
        stored = app.run("select builder_score from users where id = %s", user)[0][0]
        decimals = 0 if app.types("users")["builder_score"] == "integer" else 1
        assert stored == pytest.approx(
            sum(points for *_, points in explained), abs=0.5 / 10**decimals + 1e-9
        )
        assert stored == round(stored, decimals)

    # each signal that the host has the columns for is not nothing
    found = {
        name for score in expected.values() for name in score.signals if score.signals[name].raw
    }
    assert found == {
        "shipped",
        "vouches",
        *(["impact"] if app.has("projects", "github_stars") else []),
        *(["profile"] if app.has("users", "bio") else []),
        *(["age"] if app.has("users", "created_at") else []),
    }
    if app.types("users")["builder_score"] == "double precision":
        assert any(score.stored % 1 for score in expected.values()), "tenths are kept"
