"""A heavy load of an application's: clients whose transactions share a few users and projects.

    with Load(as_application(address), schema, clients=4, seed=1) as load:
        ...                           # they go on until stop(), or for so many `transactions`
    load.committed["transactions"], load.errors["40P01"]
    load.assert_kept(db)              # what the server said was committed is there

It knows nothing of us: the same load, with the same seed, runs on a database without us. All that
is random in a client's n-th transaction comes from the seed, the client and n.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any, Self
from uuid import uuid4

import psycopg
from psycopg import Connection, IsolationLevel, sql

from tests.community import one
from tests.host_databases import Application
from tests.host_schemas import REFERENCE, HostSchema

USERS, PROJECTS = 6, 12
OWN = 3
"""Projects and people of a client's own, above which it deletes the oldest."""

ISOLATION_LEVELS = ("read committed", "repeatable read", "serializable")
TRY_AGAIN = ("40001", "40P01")
REFUSED = ("23503", "23505")
"""A user or a project that another client has deleted; a row that another one has inserted."""

Step = tuple[int, int, str, Callable[[], Any]]
"""The order in which its rows are locked, its name, and what it does."""


class Load:
    """Clients on a database, each a thread with a connection of its own.

    Attributes:
        users, projects: The ids that all clients share.
        errors: What the server refused, by SQLSTATE. Serialization failures and deadlocks were
            tried again; lost connections are "lost".
    """

    def __init__(
        self,
        address: str,
        schema: HostSchema | None,
        *,
        clients: int,
        seed: int,
        transactions: int | None = None,
        isolation: str = "read committed",
        ordered: bool = True,
        truncating: bool = False,
        tolerant: bool = False,
    ) -> None:
        """Choose a load.

        Args:
            address: The application's: see as_application().
            schema: The application's; None for the reference tables.
            clients: How many.
            seed: Where all that is random comes from.
            transactions: After so many each client ends; None: when stop() is called.
            isolation: Of all transactions: one of ISOLATION_LEVELS.
            ordered: Whether all transactions lock rows in one order and delete only what is their
                client's own, so that no two wait for each other; else they deadlock now and then.
            truncating: Whether project_collaborators is truncated now and then.
            tolerant: Whether clients whose connection is lost come back.
        """
        self._address = address
        self.schema = schema or REFERENCE
        self.seed = seed
        self._number_of_transactions = transactions
        self.isolation = IsolationLevel[isolation.upper().replace(" ", "_")]
        self.ordered = ordered
        self._truncating = truncating
        self.tolerant = tolerant
        self._stopping = threading.Event()
        self._clients = [_Client(self, number) for number in range(clients)]
        self._running: list[Future[None]] = []
        self.users: list[Any] = []
        self.projects: list[Any] = []
        self.collaborations: list[tuple[Any, Any]] = []

    def __enter__(self) -> Self:
        with psycopg.connect(self._address, autocommit=True) as db:
            self._prepare(Application(db, self.schema), Random(self.seed))
        self._threads = ThreadPoolExecutor(len(self._clients), thread_name_prefix="client")
        self._running = [self._threads.submit(client.run) for client in self._clients]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._number_of_transactions is not None:
            self.finish()
        else:
            self.stop(quietly=kind is not None)

    @property
    def running(self) -> bool:
        return not all(client.done() for client in self._running)

    @property
    def committed(self) -> Counter[str]:
        """How many transactions were committed, and of which steps; to be read at any time."""
        return sum((client.committed for client in self._clients), Counter[str]())

    @property
    def errors(self) -> Counter[str]:
        return sum((client.errors for client in self._clients), Counter[str]())

    def finish(self) -> None:
        """Wait for clients that have so many transactions; raise what one of them met."""
        self._threads.shutdown()
        for client in self._running:
            client.result()

    def stop(self, *, quietly: bool = False) -> None:
        """End all clients after their transaction; raise what one of them met, unless quietly."""
        self._stopping.set()
        self._threads.shutdown()
        for client in self._running:
            if not quietly:
                client.result()

    def assert_kept(self, db: Connection[Any]) -> None:
        """No transaction that a client was told is committed is missing, and none came later.

        After stop(). Prepared transactions that a client lost with its connection are committed.
        """
        for client in self._clients:
            client.end_prepared(db)
            last = int(one(db, "select username from users where id = %s", client.mark).split()[-1])
            assert client.acknowledged <= last <= client.attempted, f"client {client.number}"

    def _prepare(self, app: Application, dice: Random) -> None:
        self.has_bio = app.has("users", "bio")
        self.has_score = app.has("users", "builder_score")
        self.has_stars = app.has("projects", "github_stars")
        self.two_phase = int(one(app.db, "show max_prepared_transactions")) > 0
        self.users = [app.sign_up(uuid4().hex) for _ in range(USERS)]
        self.projects = [app.start(self.users[place % USERS]) for place in range(PROJECTS)]
        for project in self.projects:
            for user in dice.sample(self.users, 2):
                app.invite(project, user, dice.choice(("pending", "confirmed")))
                self.collaborations.append((project, user))
        for client in self._clients:
            client.mark = app.sign_up(f"{uuid4().hex} 0")

    def connect(self) -> Connection[Any]:
        db = psycopg.connect(self._address, autocommit=True)
        db.isolation_level = self.isolation
        return db

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def ends_after(self, number: int) -> bool:
        return self.stopping or number == self._number_of_transactions

    def steps(self, dice: Random, client: "_Client", app: Application) -> list[Step]:
        """What a transaction is made of, in the order in which it is done."""
        if self._truncating and dice.random() < 0.05:
            # alone: it would wait for clients who wait for a row that this one holds
            return [(0, 0, "truncate", lambda: app.run("truncate project_collaborators"))]
        makers = [self._users_step, self._projects_step, self._collaborations_step, client.own_step]
        if not self.ordered:
            makers.append(client.replacing_step)
        count = dice.randint(1, 4)
        chosen = [dice.choice(makers)(dice, app) for _ in range(count)]
        return sorted(chosen, key=lambda step: step[:2]) if self.ordered else chosen

    def _users_step(self, dice: Random, app: Application) -> Step:
        place, value = dice.randrange(USERS), dice.choice(("", "a bio"))
        user, score = self.users[place], dice.randrange(100)
        match dice.randrange(3):
            case 0:
                column = "bio = %s" if self.has_bio else "username = username || left(%s, 0)"
                statement = f"update users set {column} where id = %s"
                return 0, place, "profile", lambda: app.run(statement, value, user)
            case 1:
                # somebody who saves an object that was read long ago
                column = "builder_score = %s" if self.has_score else "username = username"
                values = (score, user) if self.has_score else (user,)
                statement = f"update users set {column} where id = %s"
                return 0, place, "stale save", lambda: app.run(statement, *values)
            case _:
                # FOR UPDATE would also wait for whoever gives that user a project
                mode = "no key update" if self.ordered else "update"
                statement = f"select from users where id = %s for {mode}"
                return 0, place, "lock", lambda: app.run(statement, user)

    def _projects_step(self, dice: Random, app: Application) -> Step:
        place, user = dice.randrange(PROJECTS), dice.choice(self.users)
        project, stars = self.projects[place], dice.randrange(1000)
        status = dice.choice(("in_progress", "shipped"))
        update = "update projects set {} = %s where id = %s"
        match dice.randrange(3):
            case 0:
                transfer = update.format("owner_id")
                return 1, place, "transfer", lambda: app.run(transfer, user, project)
            case 1 if self.has_stars:
                star = update.format("github_stars")
                return 1, place, "star", lambda: app.run(star, stars, project)
            case _:
                ship = update.format("status")
                return 1, place, "ship", lambda: app.run(ship, status, project)

    def _collaborations_step(self, dice: Random, app: Application) -> Step:
        place = dice.randrange(len(self.collaborations))
        project, user = self.collaborations[place]
        status = dice.choice(("pending", "confirmed"))
        if self._truncating and dice.random() < 0.5:
            return 2, place, "invite", lambda: app.invite(project, user, status)
        confirm = (
            "update project_collaborators set status = %s where project_id = %s and user_id = %s"
        )
        return 2, place, "confirm", lambda: app.run(confirm, status, project, user)


class _Client:
    """One client: its connection, and what it has made and may delete."""

    def __init__(self, load: Load, number: int) -> None:
        self.number = number
        self.committed: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.mark: Any = None
        """A user in whose name every transaction writes its number."""
        self.attempted = 0
        self.acknowledged = 0
        self._load = load
        self._name = uuid4().hex
        self._own: list[tuple[str, Any]] = []
        self.replaced: list[tuple[list[Any], int, Any]] = []
        """What others are to know once it is committed: a list, the place in it, the id."""

    def run(self) -> None:
        db: Connection[Any] | None = None
        while not self._load.ends_after(self.attempted):
            self.attempted += 1
            while True:
                try:
                    if db is None:
                        db = self._load.connect()
                        self.end_prepared(db)
                    self._transact(db)
                    break
                except psycopg.Error as error:
                    if db is None or db.closed or _is_lost(error):
                        self._come_back(error)
                        db = None
                        if self._load.stopping:
                            return
                    else:
                        # a statement in the middle has failed, or the COMMIT
                        db.execute("rollback")
                        self.errors[error.sqlstate or "?"] += 1
                        if error.sqlstate in REFUSED:
                            break
                        if error.sqlstate not in TRY_AGAIN:
                            raise
        if db is not None:
            db.close()

    def end_prepared(self, db: Connection[Any]) -> None:
        """Commit what was prepared on a connection that is lost."""
        gids = db.execute(
            "select gid from pg_prepared_xacts"
            " where starts_with(gid, %s) and database = current_database()",
            [self._name],
        ).fetchall()
        for (gid,) in gids:
            db.execute(sql.SQL("commit prepared {}").format(gid))

    def own_step(self, dice: Random, app: Application) -> Step:
        """What nobody else knows: so it may be deleted, in any order."""
        user, other = dice.sample(self._load.users, 2)
        kind, project = dice.choice(("project", "guest")), dice.choice(self._load.projects)

        def make() -> Any:
            if kind == "project":
                return app.vouch(user, other)
            guest = app.sign_up(uuid4().hex)
            app.vouch(guest, user)
            app.invite(project, guest, "confirmed")
            return guest

        def make_or_delete() -> None:
            if len(self._own) < OWN:
                self._own.append((kind, make()))
            else:
                kind_of, made = self._own.pop(0)
                table = "projects" if kind_of == "project" else "users"
                app.run(f"delete from {table} where id = %s", made)

        return 3, 0, kind, make_or_delete

    def replacing_step(self, dice: Random, app: Application) -> Step:
        """Delete what other clients are at work on, and put another one in its place."""
        load = self._load
        place, owner = dice.randrange(PROJECTS), dice.choice(load.users)
        project = load.projects[place]
        user_place = dice.randrange(USERS)
        user = load.users[user_place]

        def another_project() -> None:
            app.run("delete from projects where id = %s", project)
            self.replaced.append((load.projects, place, app.start(owner)))

        def another_user() -> None:
            app.run("delete from users where id = %s", user)
            self.replaced.append((load.users, user_place, app.sign_up(uuid4().hex)))

        if dice.random() < 0.5:
            return 3, 0, "delete project", another_project
        return 3, 0, "delete user", another_user

    def _transact(self, db: Connection[Any]) -> None:
        dice = Random(f"{self._load.seed} {self.number} {self.attempted}")
        app = Application(db, self._load.schema)
        before = list(self._own)
        self.replaced.clear()
        names: list[str] = []
        try:
            end = self._play(db, dice, app, names)
        except BaseException:
            self._own = before
            raise
        if end == "rollback":
            self._own = before
        else:
            for ids, place, another in self.replaced:
                ids[place] = another
            self.acknowledged = self.attempted
            self.committed.update([*names, "transactions"])

    def _play(self, db: Connection[Any], dice: Random, app: Application, names: list[str]) -> str:
        level = self._load.isolation.name.replace("_", " ")
        db.execute(f"begin isolation level {level}".encode())
        for _, _, name, step in self._load.steps(dice, self, app):
            if dice.random() < 0.2:
                before, undone = list(self._own), dice.random() < 0.5
                replaced = len(self.replaced)
                with db.transaction(force_rollback=undone):
                    step()
                if undone:
                    self._own = before
                    del self.replaced[replaced:]
                    continue
            else:
                step()
            names.append(name)
            if dice.random() < 0.2:
                db.execute("select pg_sleep(%s)", [dice.random() / 200])  # at work with its rows
        rename = "update users set username = %s where id = %s"
        db.execute(rename.encode(), [f"{self._name} {self.attempted}", self.mark])
        end = "rollback" if dice.random() < 0.05 else "commit"
        if self._load.two_phase and dice.random() < 0.1:
            gid = sql.Literal(f"{self._name} {self.attempted}")
            db.execute(sql.SQL("prepare transaction {}").format(gid))
            db.execute("select pg_sleep(%s)", [dice.random() / 200])
            db.execute(sql.SQL(f"{end} prepared {{}}").format(gid))
            names.append("prepared")
        else:
            db.execute(end.encode())
        return end

    def _come_back(self, error: psycopg.Error) -> None:
        if not self._load.tolerant:
            raise error
        self.errors["lost"] += 1
        time.sleep(0.02)


def _is_lost(error: psycopg.Error) -> bool:
    """Whether this says that the server went away, or is not there yet."""
    return error.sqlstate is None or error.sqlstate[:3] in ("57P", "080")
