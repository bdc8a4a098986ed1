"""Clients of an application that write down, outside the database, what they have committed.

    with Clients(address, seed=7) as clients:
        ...                                     # kill whatever there is: they connect again
    assert_kept(db, clients)                    # what was acknowledged is there, and nothing else

Each transaction leaves its number in the table ledger. So it is known of every one whether it is
there, and a replay of those that are, in plain Python, must give the rows of the host's tables.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from threading import Event
from typing import Any, NamedTuple, Self

import psycopg
from psycopg import Connection

from pyscore import migrator
from tests.community import add_user, configure, drain
from tests.interleave import until
from tests.recalculations import note_recalculations

MEMBERS = [f"member {number}" for number in range(8)]
"""People whom all clients know, and nobody removes; each one's profile is one client's to edit."""

BYSTANDER = "bystander"
"""Somebody to whom nothing happens: what was computed once is there for ever."""

PROJECTS, GUESTS = 12, 2
"""How many each client has under names of its own: so few that all of them change all the time."""

WINDOW = "0.2 seconds"

_PROJECT = "select id from projects where title = %(title)s"
_STATEMENTS = {
    "join": """
        insert into users (username, email) values (%(who)s, %(who)s)
        on conflict (username) do nothing""",
    "leave": "delete from users where username = %(who)s",
    "edit": "update users set bio = %(text)s where username = %(who)s",
    "save a stale score": "update users set builder_score = 50 where username = %(who)s",
    "start": f"""
        insert into projects (owner_id, title, status)
        select id, %(title)s, %(text)s from users
        where username = %(who)s and not exists ({_PROJECT})""",
    "change": "update projects set status = %(text)s where title = %(title)s",
    "star": "update projects set github_stars = %(text)s::integer where title = %(title)s",
    "transfer": """
        update projects as p set owner_id = u.id from users as u
        where p.title = %(title)s and u.username = %(who)s""",
    "remove": "delete from projects where title = %(title)s",
    "invite": f"""
        insert into project_collaborators (project_id, user_id, status)
        select ({_PROJECT}), id, %(text)s from users
        where username = %(who)s and exists ({_PROJECT})
        on conflict (project_id, user_id) do update set status = excluded.status""",
    "part": f"""
        delete from project_collaborators where project_id = ({_PROJECT})
        and user_id = (select id from users where username = %(who)s)""",
}
_TEXTS = {
    "edit": ("", "builds", "ships"),
    "start": ("in_progress", "shipped"),
    "change": ("in_progress", "shipped"),
    "star": ("0", "10", "1000"),
    "invite": ("pending", "confirmed"),
}


class Change(NamedTuple):
    verb: str
    who: str
    title: str
    text: str


@dataclass
class Entry:
    """One transaction: its number, what it does, and what its client knows about its end."""

    number: int
    changes: list[Change]
    fate: str = "not committed"


@dataclass
class Rows:
    """What the host's tables should hold."""

    bios: dict[str, str] = field(default_factory=dict[str, str])
    projects: dict[str, tuple[str, str, int]] = field(default_factory=dict[str, Any])
    collaborators: dict[tuple[str, str], str] = field(default_factory=dict[Any, str])

    def apply(self, change: Change) -> None:
        verb, who, title, text = change
        known, owned = who in self.bios, self.projects.get(title)
        match verb:
            case "join":
                self.bios.setdefault(who, "")
            case "leave":
                self.bios.pop(who, None)
                for name in [name for name, row in self.projects.items() if row[0] == who]:
                    self._remove(name)
                self._forget(who, at=1)
            case "edit" if known:
                self.bios[who] = text
            case "start" if known and owned is None:
                self.projects[title] = (who, text, 0)
            case "change" if owned:
                self.projects[title] = (owned[0], text, owned[2])
            case "star" if owned:
                self.projects[title] = (owned[0], owned[1], int(text))
            case "transfer" if owned and known:
                self.projects[title] = (who, *owned[1:])
            case "remove":
                self._remove(title)
            case "invite" if owned and known:
                self.collaborators[title, who] = text
            case "part":
                self.collaborators.pop((title, who), None)
            case _:
                pass  # a stale score, or a statement that found no row

    def _remove(self, title: str) -> None:
        self.projects.pop(title, None)
        self._forget(title, at=0)

    def _forget(self, name: str, at: int) -> None:
        for key in [key for key in self.collaborators if key[at] == name]:
            del self.collaborators[key]


class Client:
    """One client: its transactions follow from its seed alone, whatever happens to them."""

    def __init__(self, number: int, clients: int, seed: int) -> None:
        self.name = f"client {number}"
        self.journal: list[Entry] = []
        self.committed = 0
        self.connections = 0
        self._mine = MEMBERS[number % clients :: clients]
        self._dice = Random(f"{seed} {number}")

    def work(self, address: str, stop: Event) -> None:
        """Commit one transaction after the other; after a lost connection go on with the next."""
        while not stop.is_set():
            try:
                with psycopg.connect(address, autocommit=True, application_name=self.name) as db:
                    self.connections += 1
                    while not stop.is_set():
                        self._commit_one(db)
            except psycopg.OperationalError:
                stop.wait(0.02)  # the server is down, or not yet up

    def _commit_one(self, db: Connection[Any]) -> None:
        dice = self._dice
        changes = [self._any_change() for _ in range(dice.randint(1, 3))]
        entry = Entry(len(self.journal), changes)
        self.journal.append(entry)
        taken_back = dice.random() < 0.1
        db.execute("begin")
        for change in changes:
            db.execute(_STATEMENTS[change.verb].encode(), change._asdict())
        db.execute("insert into ledger values (%s, %s)", [self.name, entry.number])
        if taken_back:
            db.execute("rollback")
            return
        entry.fate = "in doubt"
        db.execute("commit")
        entry.fate = "committed"
        self.committed += 1

    def _any_change(self) -> Change:
        dice = self._dice
        verb = dice.choice([verb for verb in _STATEMENTS if verb != "remove"] * 3 + ["remove"])
        guests = [f"{self.name}'s guest {number}" for number in range(GUESTS)]
        match verb:
            case "join" | "leave":
                who = dice.choice(guests)
            case "edit" | "save a stale score":
                who = dice.choice(self._mine + guests)
            case _:
                who = dice.choice(MEMBERS + guests)
        title = f"{self.name}'s project {dice.randrange(PROJECTS)}"
        return Change(verb, who, title, dice.choice(_TEXTS.get(verb, ("",))))


class Clients:
    """Several clients, at work from the beginning of the context to its end.

    Args:
        first: the first one's number; where others have worked before, one that none of them had.
    """

    def __init__(self, address: str, *, seed: int, clients: int = 4, first: int = 0) -> None:
        self._address = address
        self.each = [Client(first + number, clients, seed) for number in range(clients)]
        self._stop = Event()
        self._at_work: list[Future[None]] = []

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(len(self.each))
        self._at_work = [
            self._threads.submit(client.work, self._address, self._stop) for client in self.each
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._threads.shutdown()
        self._raise_errors()

    @property
    def committed(self) -> int:
        """How many transactions were acknowledged."""
        return sum(client.committed for client in self.each)

    @property
    def connections(self) -> int:
        return sum(client.connections for client in self.each)

    def go_on(self, transactions: int) -> None:
        """Return once so many more transactions have been acknowledged."""
        target = self.committed + transactions

        def reached() -> bool:
            self._raise_errors()
            return self.committed >= target

        until(reached, f"{transactions} more transactions", seconds=60)

    def acknowledged(self) -> set[tuple[str, int]]:
        """The transactions that are known to be committed by now."""
        return {
            (client.name, entry.number)
            for client in self.each
            for entry in client.journal.copy()
            if entry.fate == "committed"
        }

    def begun(self) -> set[tuple[str, int]]:
        """All transactions that can be there by now."""
        return {
            (client.name, number) for client in self.each for number in range(len(client.journal))
        }

    def _raise_errors(self) -> None:
        for work in self._at_work:
            if work.done():
                work.result()


def prepare(address: str) -> None:
    """Install, make the ledger and the members, and note each recalculation."""
    migrator.upgrade(address)
    with psycopg.connect(address, autocommit=True) as db:
        configure(db, debounce_window=WINDOW)
        db.cursor().executemany(
            "insert into users (username, email) values (%s, %s)", [(who, who) for who in MEMBERS]
        )
        db.execute(
            "create table ledger (client text, number integer, primary key (client, number))"
        )
        note_recalculations(db)
        add_user(db, BYSTANDER, bio="was here before")
        drain(db)


def assert_kept(
    db: Connection[Any], *groups: Clients, at_least: set[tuple[str, int]] | None = None
) -> None:
    """The host's tables hold what a replay of the journal gives, and no acknowledged one is lost.

    Args:
        db: Where to look.
        groups: Those that worked on it, one group after the other.
        at_least: What must be there. Default: all that was acknowledged. Where that may be less,
            what is missing of a client's must be its last ones.
    """
    rows = Rows(bios=dict.fromkeys(MEMBERS, ""))
    there = set(db.execute("select client, number from ledger").fetchall())
    required = set[tuple[str, int]]().union(*(group.acknowledged() for group in groups))
    assert (required if at_least is None else at_least) <= there
    for group in groups:
        fates = {entry.fate for client in group.each for entry in client.journal}
        assert "committed" in fates, "a group was idle"
    for client in (client for group in groups for client in group.each):
        acknowledged: list[bool] = []
        for entry in client.journal:
            is_there = (client.name, entry.number) in there
            assert not is_there or entry.fate != "not committed", f"{client.name}: {entry}"
            if entry.fate == "committed":
                acknowledged.append(is_there)
            if is_there:
                for change in entry.changes:
                    rows.apply(change)
        assert acknowledged == sorted(acknowledged, reverse=True), f"{client.name}: a gap"
    assert _found(db) == rows


def _found(db: Connection[Any]) -> Rows:
    """What the host's tables hold of people whose names are ours."""
    people = "select username, coalesce(bio, '') from users where username ~ '^(member|client) '"
    projects = f"""
        select p.title, u.username, p.status, p.github_stars
        from projects as p join users as u on u.id = p.owner_id
        where u.username in (select username from ({people}) as ours)"""
    collaborators = f"""
        select p.title, u.username, k.status
        from project_collaborators as k
        join projects as p on p.id = k.project_id join users as u on u.id = k.user_id
        where u.username in (select username from ({people}) as ours)"""
    return Rows(
        dict(fetch(db, people)),
        {title: (owner, *rest) for title, owner, *rest in fetch(db, projects)},
        {(title, who): status for title, who, status in fetch(db, collaborators)},
    )


def assert_nothing_done_twice(db: Connection[Any]) -> None:
    """No recalculation within the window of the last, none without an event, none that failed."""
    too_early = """
        select *
        from (
            select user_id, computed_at - lag(computed_at) over (
                partition by user_id order by computed_at) as after
            from recalculations
        ) as r
        where r.after < (select s.debounce_window from builder_score.settings as s)
    """
    assert fetch(db, too_early) == []
    bystander = f"""
        select count(*) <= 1 from recalculations
        where user_id = (select id from users where username = '{BYSTANDER}')
    """
    assert fetch(db, bystander) == [(True,)]
    troubled = "select * from builder_score.score_state where attempts > 0 or retry_at is not null"
    assert fetch(db, troubled) == []
    assert fetch(db, "select failed, dead_letters from builder_score.health") == [(0, 0)]


def workers_in_order(db: Connection[Any]) -> list[int]:
    """Whose recalculations followed whose: the backends, each time another one took over."""
    written = [row[0] for row in fetch(db, "select pid from recalculations order by number")]
    return [pid for place, pid in enumerate(written) if place == 0 or pid != written[place - 1]]


def fetch(db: Connection[Any], query: str) -> Sequence[tuple[Any, ...]]:
    return db.execute(query.encode()).fetchall()
