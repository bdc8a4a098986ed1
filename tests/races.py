"""The races that such systems are known for, as specs for test_permutations."""

from collections.abc import Sequence
from typing import Any

from pyscore.locations import MIGRATIONS
from tests.community import one
from tests.interleave import settle
from tests.permutations import SEAMS, Played, Spec, Worker
from tests.statements import run


def people(*names: str) -> str:
    return "".join(f"insert into users (username, email) values ('{n}', '{n}');" for n in names)


def project(title: str, owner: str, status: str = "in_progress") -> str:
    return f"""
        insert into projects (title, owner_id, status)
        select '{title}', id, '{status}' from users where username = '{owner}';
    """


def helped(title: str, helper: str, status: str = "confirmed") -> str:
    return f"""
        insert into project_collaborators (project_id, user_id, status)
        select p.id, u.id, '{status}' from projects as p, users as u
        where p.title = '{title}' and u.username = '{helper}';
    """


def ship(title: str) -> str:
    return f"update projects set status = 'shipped' where title = '{title}'"


def transaction(isolation: str = "read committed", **steps: str) -> dict[str, str]:
    return {"begin": f"begin isolation level {isolation}"} | steps | {"commit": "commit"}


def points(played: Played, name: str) -> Any:
    return one(played.db, "select builder_score from users where username = %s", name)


RECALCULATE = "select builder_score.recalculate(id) from users where username = '{}'"

W = Worker()
RESIDENT = Worker("call builder_score.run_worker('0')")
LEVELS = ("read committed", "repeatable read", "serializable")

FEW = ("choose", "lock", "compute")


def at(order: str, seams: Sequence[str] = SEAMS) -> tuple[str, ...]:
    """Make it an order for each of the seams."""
    return tuple(order.format(seam) for seam in seams)


SPECS: dict[str, Spec] = {}

# An application beside a batch ------------------------------------------------------------------

SPECS["event"] = Spec(
    given=people("ann") + project("p", "ann"),
    events=project("q", "ann", "shipped"),
    # the second one's foreign key takes a lock on ann
    sessions={"w": W, "a": transaction(ship=ship("p"), start=project("r", "ann", "shipped"))},
    orders=(*at("w.{} a w"), *at("w.{} a.start w a")),
    scores={"ann": 20},
    never_wait=("a", "w"),
)


def answered_at_once(played: Played) -> None:
    """No window keeps the newcomers, and each is computed once."""
    settle(played.db)
    recalculated = one(played.db, "select recalculated from builder_score.health")
    assert recalculated == 3  # and eve


SPECS["sign-up"] = Spec(
    events=people("eve"),
    settings="debounce_window = '5 minutes'",
    sessions={
        "w": W,
        "a": transaction(
            sign_up=people("ann", "bob"), start=project("p", "ann"), vouch=helped("p", "bob")
        ),
    },
    orders=(*at("w.{} a w"), *at("w.{} a.vouch w a")),
    scores={"ann": 8, "bob": 8},
    never_wait=("a", "w"),
    check=answered_at_once,
)
SPECS["stale save"] = Spec(
    given=people("ann", "bob") + project("p", "ann", "shipped"),
    events=project("q", "ann", "shipped"),
    sessions={
        "w": W,
        "a": transaction(
            save="update users set builder_score = 99, updated_at = now() where username = 'ann'"
        ),
    },
    orders=(*at("w.{} a w", FEW), *at("w.{} a.save w a", FEW)),
    scores={"ann": 16},
    never_wait=("w",),
)


def bob_is_done(played: Played) -> None:
    assert points(played, "bob") == 10, "bob is free, and waits for nobody"


SPECS["users held for update"] = Spec(
    given=people("ann", "bob"),
    events=project("q", "ann", "shipped") + project("r", "bob", "shipped"),
    sessions={
        "w": W,
        "a": transaction(hold="select from users where username = 'ann' for update"),
    },
    orders=("a.hold w a", *at("w.{} a w", FEW), *at("w.{} a.hold w a")),
    scores={"ann": 10, "bob": 10},
    never_wait=("w",),
    check=bob_is_done,
)
SPECS["prepared transaction"] = Spec(
    given=people("ann", "bob") + project("p", "ann"),
    events=project("q", "ann", "shipped") + project("r", "bob", "shipped"),
    sessions={
        "w": W,
        "a": {
            "begin": "begin",
            "ship": ship("p"),
            "edit": "update users set bio = 'builds' where username = 'ann'",
            "prepare": "prepare transaction 'ours'",
            "commit": "commit prepared 'ours'",
        },
    },
    orders=("a.prepare w a", *at("w.{} a w", FEW), *at("w.{} a.prepare w a", FEW)),
    scores={"ann": 18, "bob": 10},  # one field of six, too
    never_wait=("w",),
    check=bob_is_done,
)
SPECS["savepoint"] = Spec(
    given=people("ann", "bob") + project("p", "ann") + project("q", "bob"),
    events=project("r", "ann", "shipped"),
    sessions={
        "w": W,
        "a": transaction(
            ship=ship("p"), savepoint="savepoint s", other=ship("q"), back="rollback to s"
        ),
    },
    orders=("a.other w a", *at("w.{} a w", FEW), *at("w.{} a.back w a", FEW)),
    scores={"ann": 16, "bob": 0},
    never_wait=("a", "w"),
)


def ann_is_forgotten(played: Played) -> None:
    settle(played.db)
    known = run(played.db, "select user_id from builder_score.score_state")
    assert known == run(played.db, "select id from users")


SPECS["user deleted"] = Spec(
    given=people("ann", "bob") + project("p", "ann") + helped("p", "bob"),
    events=project("q", "ann", "shipped") + project("r", "bob", "shipped"),
    sessions={"w": W, "a": transaction(delete="delete from users where username = 'ann'")},
    orders=(*at("w.{} a w"), *at("w.{} a.delete w a")),
    scores={"bob": 10},
    never_wait=("w",),
    check=ann_is_forgotten,
)

# Two applications beside a batch ------------------------------------------------------------------

SPECS["opposite orders"] = Spec(
    given=people("ann", "bob")
    + project("p", "ann")
    + project("q", "bob")
    + project("r", "bob")
    + project("s", "ann"),
    sessions={
        "w": W,
        "a": transaction(ann=ship("p"), bob=ship("q")),
        "b": transaction(bob=ship("r"), ann=ship("s")),
    },
    # with an upsert into a queue of one row a user, a and b would wait for each other
    orders=("a.ann b.bob a.bob b.ann w.compute a w b", "a.ann b.bob w a.bob b.ann a b"),
    scores={"ann": 16, "bob": 16},
    never_wait=("a", "b", "w"),
)
TRANSFER = "update projects set owner_id = (select id from users where username = 'new')"
CONFIRM = "update project_collaborators set status = 'confirmed' where status = 'pending'"
for level in LEVELS:
    SPECS[f"transfer and confirm, {level}"] = Spec(
        given=people("old", "new", "bob")
        + project("p", "old")
        + helped("p", "bob", "pending")
        # so that the transfer changes bob's score, and the confirmation new's
        + project("q", "old")
        + helped("q", "bob"),
        events=project("r", "bob", "shipped"),
        sessions={
            "w": W,
            "t": transaction(level, transfer=f"{TRANSFER} where title = 'p'"),
            "c": transaction(level, confirm=CONFIRM),
        },
        orders=(
            *("t.transfer c.confirm t w c", "t.transfer c.confirm c w t"),
            *("w.choose t.transfer c w t", "w.read t.transfer c t w", "w.write c.confirm t w c"),
        ),
        scores={"old": 8, "new": 8, "bob": 23},  # 10 and 8 log2(3)
        never_wait=("w", "t", "c"),
    )
SPECS["project deleted and confirm"] = Spec(
    given=people("ann", "bob") + project("p", "ann", "shipped") + helped("p", "bob", "pending"),
    events=project("q", "ann", "shipped"),
    sessions={
        "w": W,
        "d": transaction(delete="delete from projects where title = 'p'"),
        "c": transaction(confirm=CONFIRM),
    },
    orders=("c.confirm d.delete c w d", "w.compute c d w", "w.expand c w.compute d w"),
    scores={"ann": 10, "bob": 0},
    never_wait=("w",),
)

# Several that compute -----------------------------------------------------------------------------

SPECS["two workers"] = Spec(
    given=people("ann") + project("p", "ann"),
    events=project("q", "ann", "shipped"),
    sessions={"w": W, "v": RESIDENT, "a": {"ship": ship("p")}},
    orders=(
        # w has the older snapshot: of the queue, of who is locked, of what is computed
        *("w.expand a v w", "w.choose a v w", "w.lock a v w", "w.read a v w", "w.compute a v w"),
        *("w.choose v.compute a w v", "w.read v.choose a w v", "w.delete v.choose a v w"),
    ),
    scores={"ann": 16},
    never_wait=("a",),
)


def computed_once(played: Played) -> None:
    # by nobody yet where each put it off for the other's sake
    assert played.recalculated <= 1
    settle(played.db)
    assert one(played.db, "select recalculated from builder_score.health") == 1


SPECS["two workers, one event"] = Spec(
    given=people("ann"),
    events=project("q", "ann", "shipped"),
    sessions={"w": W, "v": RESIDENT},
    orders=("w.choose v w", "w.lock v w", "w.compute v w", "w.delete v.lock w v", "v.expand w v"),
    scores={"ann": 10},
    check=computed_once,
)


def sees_what_it_waited_for(played: Played) -> None:
    assert played.rows["r.recalculate"] in ([(16,)], [(20,)])


SPECS["recalculate"] = Spec(
    given=people("ann") + project("p", "ann") + project("q", "ann"),
    events=ship("p"),
    sessions={
        "w": W,
        "r": transaction(
            start=project("r", "ann", "shipped"), recalculate=RECALCULATE.format("ann")
        ),
        "a": {"ship": ship("q")},
    },
    orders=(
        *at("w.{} r a w"),
        *at("w.{} r.recalculate w a r", ("choose", "read", "compute", "delete")),
        *at("w.{} r.recalculate a w r", ("choose", "lock", "read", "compute")),
    ),
    scores={"ann": 20},
    never_wait=("w", "a"),
    check=sees_what_it_waited_for,
)


def at_most_once(played: Played) -> None:
    """Nobody is computed twice within a window; what came later waits for its end."""
    assert played.recalculated <= 1


SPECS["recalculate within a window"] = Spec(
    events=people("ann"),
    settings="debounce_window = '5 minutes'",
    sessions={"w": W, "v": RESIDENT, "a": {"start": project("p", "ann", "shipped")}},
    orders=("w.choose a v w", "w.compute v.choose a w v", "w.read a v w"),
    finish="update builder_score.settings set debounce_window = '0'",
    scores={"ann": 10},
    never_wait=("a",),
    check=at_most_once,
)
EVERYONE = "select builder_score.enqueue_everyone('recompute --all')"
SPECS["everyone"] = Spec(
    given=people("ann", "bob") + project("p", "ann") + project("q", "bob"),
    sessions={
        "w": W,
        "e": {"enqueue": EVERYONE, "again": EVERYONE},
        "a": transaction(
            ship=ship("p"), sign_up=people("cat"), start=project("r", "cat", "shipped")
        ),
    },
    orders=(
        *at("e.enqueue w.{} a e w", FEW),
        *("a.ship e w.expand a w", "a.start e.enqueue w.choose e w a"),
    ),
    scores={"ann": 10, "bob": 0, "cat": 10},
    never_wait=("a", "e", "w"),
)
SPECS["everyone, by two workers"] = Spec(
    given=people("ann", "bob") + project("p", "ann"),
    events=EVERYONE,
    sessions={"w": W, "v": RESIDENT, "a": {"ship": ship("p"), "sign_up": people("cat")}},
    orders=("w.expand v.expand a w v", "w.compute a v w", "w.delete v.choose a v w"),
    scores={"ann": 10, "cat": 0},
    never_wait=("a",),
)

# Failures -----------------------------------------------------------------------------------------


def the_backoff_stands(played: Played) -> None:
    """A second failure waits longer, whatever event came; a success ends it."""
    query = "select attempts, retry_at > clock_timestamp() from builder_score.score_state"
    state = run(played.db, query)
    assert state in ([(2, True)], [(0, None)])
    if state == [(2, True)]:
        assert run(played.db, "select id from builder_score.score_recalc_queue") != []


SPECS["retry"] = Spec(
    given="""
        create table if not exists poisoned (username text);
        truncate poisoned;
        create or replace function poison() returns trigger language plpgsql security definer as $$
        begin
            if exists (select from poisoned as p where p.username = new.username) then
                raise exception 'poisoned';
            end if;
            return new;
        end $$;
        create or replace trigger poison before update of builder_score on users
            for each row execute function poison();
    """
    + people("ann")
    + project("p", "ann"),
    events="insert into poisoned values ('ann');"
    + project("q", "ann", "shipped")
    + """
        select builder_score.run_batch();
        update builder_score.score_state set retry_at = clock_timestamp();
        update builder_score.score_recalc_queue set not_before = clock_timestamp();
    """,
    sessions={"w": W, "a": transaction(ship=ship("p")), "h": {"heal": "delete from poisoned"}},
    orders=(
        *at("w.{} a w h"),
        *("w.compute a h w", "h w.choose a w", "a.ship w a h", "a w.read h w"),
    ),
    finish="""
        update builder_score.score_state
        set retry_at = clock_timestamp() where retry_at is not null
    """,
    restore="drop trigger poison on users",
    scores={"ann": 16},
    never_wait=("a", "h", "w"),
    failures=True,
    check=the_backoff_stands,
)

# Who changes us -----------------------------------------------------------------------------------


def stops_after_this_batch(played: Played) -> None:
    now = one(played.db, "select batches from builder_score.health")
    assert now - played.rows["p.batches"][0][0] <= 1


SPECS["pause"] = Spec(
    given=people("ann") + project("p", "ann"),
    events=project("q", "ann", "shipped"),
    sessions={
        "w": W,
        "p": transaction(pause="update builder_score.settings set paused = true")
        | {"batches": "select batches from builder_score.health"},
        "a": {"ship": ship("p")},
    },
    orders=(*at("w.{} p a w"), "w.compute p.pause a w p", "p w a"),
    finish="update builder_score.settings set paused = false",
    scores={"ann": 16},
    never_wait=("a", "p", "w"),
    check=stops_after_this_batch,
)
SPECS["formula"] = Spec(
    given=people("ann") + project("p", "ann"),
    events=project("q", "ann", "shipped") + EVERYONE,  # a walk that may have passed ann
    sessions={
        "w": W,
        "f": transaction(scale="update builder_score.signals set scale = 20 where scale = 10"),
        "a": {"ship": ship("p")},
    },
    orders=(*at("w.{} f a w"), "w.choose f.scale a w f"),
    restore="update builder_score.signals set scale = 10 where scale = 20;",
    scores={"ann": 30},
    never_wait=("a", "f", "w"),
)
SPECS["statuses"] = Spec(
    given=people("ann", "bob") + project("p", "ann", "live") + helped("p", "bob", "met"),
    events=project("q", "bob", "live"),
    sessions={
        "w": W,
        "f": transaction(
            statuses="insert into builder_score.statuses values"
            " ('shipped', 'live'), ('confirmed', 'met')"
        ),
        # by the list that its trigger sees, the row may never have counted
        "a": transaction(end="delete from project_collaborators"),
    },
    orders=(*at("a.end w.{} f a w"), "a.end f w a", "f.statuses a w f", "w.choose f a.end w a"),
    restore="delete from builder_score.statuses where status in ('live', 'met');",
    scores={"ann": 10, "bob": 10},
    never_wait=("a", "f", "w"),
)
SPECS["shorter window"] = Spec(
    given=people("ann") + project("p", "ann"),
    # put off already, and to be put off again: what it brings forward may be in the worker's hands
    events=project("q", "ann", "shipped")
    + "select builder_score.run_batch();"
    + project("r", "ann", "shipped"),
    settings="debounce_window = '5 minutes'",
    sessions={
        "w": W,
        "s": transaction(window="update builder_score.settings set debounce_window = '0'"),
        "a": {"ship": ship("p")},
    },
    orders=(*at("w.{} s a w"), "w.read s.window a w s"),
    scores={"ann": 20},
    may_hold_up_workers=("s",),  # by the rows of the queue that it brings forward
    never_wait=("a", "s"),
)

# Who locks tables ---------------------------------------------------------------------------------

# the worker gives way before deadlock_timeout would end one of them, as it does anywhere
GIVES_WAY = "lock_timeout = '50 ms'"


def nobodys_fault(played: Played) -> None:
    assert run(played.db, "select user_id from builder_score.score_state where attempts > 0") == []


SPECS["truncate"] = Spec(
    given=people("ann", "bob") + project("p", "ann", "shipped") + helped("p", "bob"),
    events=project("q", "ann", "shipped"),
    settings=GIVES_WAY,
    sessions={
        "w": W,
        "t": transaction(
            collaborators="truncate project_collaborators", all="truncate projects, users cascade"
        ),
        "a": {"sign_up": people("cat")},
    },
    orders=(*at("w.{} t a w", FEW), "t.collaborators w t a"),
    may_hold_up_workers=("t",),
    failures=True,
    check=nobodys_fault,
)


MANY = "insert into users (username, email) select n, n from generate_series(1, 40) as n;"
SPECS["host trigger"] = Spec(
    given="""
        create table if not exists writes (number bigint);
        truncate writes;
        insert into writes values (0);
        create or replace function count_write() returns trigger
        language plpgsql security definer as $$
        begin
            update writes set number = number + 1;
            return new;
        end $$;
        create or replace trigger count_write before update of builder_score on users
            for each row execute function count_write();
    """
    + MANY,
    events="insert into projects (title, owner_id, status) select 'p', id, 'shipped' from users",
    settings="lock_timeout = '20 ms'",
    deadlock_timeout="400 ms",
    sessions={
        "w": W,
        "a": transaction(
            count="update writes set number = number + 1",
            edit="update users set availability = 'free' where username = '1'",
        ),
    },
    orders=("w.lock a.count w.delete a w", "w.compute a.edit w a", "a.count w.read a.edit w a"),
    restore="drop trigger count_write on users",
    may_hold_up_workers=("a",),
    failures=True,
    check=nobodys_fault,
)
SPECS["migration"] = Spec(
    given=MANY,
    events="insert into projects (title, owner_id, status) select 'p', id, 'shipped' from users",
    settings="lock_timeout = '20 ms'",
    deadlock_timeout="400 ms",
    sessions={
        "w": W,
        "m": transaction(
            index="create index on users (headline)",
            alter="alter table projects add column nickname text",
        ),
    },
    orders=("w.lock m.index w.delete m w", "w.compute m.alter w m", "m.index w.read m w"),
    restore="drop index users_headline_idx; alter table projects drop column nickname",
    may_hold_up_workers=("m",),
    failures=True,
    check=nobodys_fault,
)

# not for long beside a batch: half of this
AT_ONCE = "set local deadlock_timeout = '20 ms'"

SPECS["detach and attach"] = Spec(
    given=people("ann", "bob") + project("p", "ann"),
    events=project("q", "ann", "shipped"),
    sessions={
        "w": W,
        "d": {
            "begin": f"begin; {AT_ONCE}",
            "detach": "select builder_score.detach()",
            "alter": "alter table users alter display_name type varchar",
            "attach": "select builder_score.attach()",
            "commit": "commit",
        },
        "a": {"ship": ship("p")},
    },
    orders=(
        *at("w.{} d a w"),
        *at("d.detach w.{} a d w", FEW),
        *at("w.{} d.attach a w d", FEW),
    ),
    scores={"ann": 16},
    may_fail={"d": {"55P03"}},
    may_hold_up_workers=("d", "a"),  # a: behind d
)
SPECS["detach, later attach"] = Spec(
    given=people("ann", "bob") + project("p", "ann"),
    events=project("q", "ann", "shipped"),
    sessions={
        "w": W,
        "d": {
            "begin": f"begin; {AT_ONCE}",
            "detach": "select builder_score.detach()",
            "commit": "commit",
            "attach": f"{AT_ONCE}; select builder_score.attach()",
        },
        "a": {"ship": ship("p")},
    },
    orders=(
        *at("w.{} d.commit a w d", FEW),
        *("d.commit w a d", "d.commit a w.expand d w", "d.detach w.expand a d.commit w d"),
    ),
    finish="select builder_score.attach()",
    scores={"ann": 16},
    may_fail={"d": {"55P03"}},
    may_hold_up_workers=("d", "a"),
)


# Uninstalling, which takes a database of its own --------------------------------------------------


def down(revision: str) -> str:
    (script,) = (MIGRATIONS / "versions").glob(f"{revision}_*.down.sql")
    return script.read_text()


UNINSTALL = {
    "begin": "begin",
    "detach": down("0004"),
    "commit": "commit",
    "index": "drop index concurrently if exists idx_users_builder_score",
    "column": down("0002"),
    "schema": "drop schema seams cascade;" + down("0001"),
}
UNINSTALLED = Spec(
    given=people("ann", "bob") + project("p", "ann"),
    events=project("q", "ann", "shipped"),
    sessions={"w": W, "u": UNINSTALL, "a": {"ship": ship("p")}},
    orders=(
        *at("w.{} u.detach w u a", ("choose", "compute", "delete")),
        *("w.expand u w a", "u.detach w a u", "u.commit w.choose a u w", "u.column w u a"),
    ),
    may_fail={"u": {"55P03"}},
    may_hold_up_workers=("u", "a"),
)
