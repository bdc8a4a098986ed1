"""The application and the promises made to it, in plain Python: what random histories are held to.

    rows            users, projects and collaborations by key, as committed; who wrote what is told
                    by transactions of the model's own, never read from the database
    what is asked   whom each committed change concerns, as a table of the design has it
    what happened   when each user was last recalculated, who fails, who was given up

Moments are seconds since 1970 on a clock that the test moves on.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import NamedTuple

from tests import oracle
from tests.oracle import Formula, json_object

DAY = 86400.0

Key = tuple[str, ...]


@dataclass(frozen=True)
class User:
    name: str
    bio: str | None
    primary_role: str | None
    contact_links: str
    born: float
    avatar_url: str | None = None
    headline: str | None = None
    timezone: str | None = None

    @property
    def key(self) -> Key:
        return ("user", self.name)


@dataclass(frozen=True)
class Project:
    name: str
    owner: str
    status: str
    stars: int
    metrics: str

    @property
    def key(self) -> Key:
        return ("project", self.name)


@dataclass(frozen=True)
class Collaboration:
    project: str
    user: str
    status: str

    @property
    def key(self) -> Key:
        return ("collaboration", self.project, self.user)


Row = User | Project | Collaboration
Rows = dict[Key, Row]


class Ask(NamedTuple):
    """That somebody is to be recalculated: since when, and whether past the window."""

    at: int
    forced: bool = False


@dataclass
class Asked:
    """Whom a transaction's changes concern: as the queue, rows of users, projects and everyone."""

    users: list[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]])
    projects: list[str] = field(default_factory=list[str])
    everyone: bool = False


def _belongs(row: Row, to: Row) -> bool:
    """Whether a foreign key has the row deleted with the other."""
    match to:
        case User(name=name):
            if isinstance(row, Project):
                return row.owner == name
            return isinstance(row, Collaboration) and row.user == name
        case Project(name=name):
            return isinstance(row, Collaboration) and row.project == name
        case Collaboration():
            return False


@dataclass
class Transaction:
    """What one transaction sees and has written; nobody else sees it before it is committed."""

    app: Application
    snapshot: Rows | None
    """The rows as of its begin; None at READ COMMITTED, which sees what is committed by now."""
    confirmed: set[str] | None
    """Likewise the statuses that mean confirmed."""
    written: dict[Key, Row | None] = field(default_factory=dict[Key, Row | None])
    asked: Asked = field(default_factory=Asked)
    locked: set[str] = field(default_factory=set[str])
    """Users whose rows nobody else can write."""
    truncates: bool = False
    recalculated: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """Users whose scores it has written, and what was asked for by then."""
    outdated: bool = False
    """Whether the statuses that count have changed since its begin: it may ask for too many."""
    saved: Transaction | None = None

    def rows(self) -> Rows:
        rows = dict(self.app.rows if self.snapshot is None else self.snapshot)
        for key, row in self.written.items():
            if row is None:
                rows.pop(key, None)
            else:
                rows[key] = row
        return rows

    def user(self, name: str) -> User | None:
        row = self.rows().get(("user", name))
        return row if isinstance(row, User) else None

    def project(self, name: str) -> Project | None:
        row = self.rows().get(("project", name))
        return row if isinstance(row, Project) else None

    def collaboration(self, project: str, user: str) -> Collaboration | None:
        row = self.rows().get(("collaboration", project, user))
        return row if isinstance(row, Collaboration) else None

    def put(self, row: Row) -> None:
        """Insert a row, or update it."""
        old = self.rows().get(row.key)
        self.written[row.key] = row
        if isinstance(row, User) and old is not None:
            self.locked.add(row.name)
        if old != row:
            self._ask_for(old, row)

    def remove(self, row: Row) -> None:
        """Delete a row and, as the foreign keys do, those that belong to it."""
        for other in list(self.rows().values()):
            if _belongs(other, row) and other.key in self.rows():
                self.remove(other)
        self.written[row.key] = None
        if isinstance(row, User):
            self.locked.add(row.name)
        self._ask_for(row, None)

    def truncate(self, kinds: set[str]) -> None:
        """Remove all rows there are, whatever this transaction sees of them."""
        for key in {**self.app.rows, **self.rows()}:
            if key[0] in kinds:
                self.written[key] = None
        self.truncates = True
        if self.app.attached:
            self.asked.everyone = True

    def ask(self, user: str, forced: bool = False) -> None:
        self.asked.users.append((user, forced))

    def recalculate(self, user: str) -> None:
        """Write the user's score: it answers what the others have asked for, and itself."""
        self.asked.users = [ask for ask in self.asked.users if ask[0] != user]
        self.recalculated.append((user, self.app.sequence))
        self.locked.add(user)

    def save(self) -> None:
        asked = replace(
            self.asked, users=list(self.asked.users), projects=list(self.asked.projects)
        )
        self.saved = replace(
            self,
            written=dict(self.written),
            asked=asked,
            locked=set(self.locked),
            recalculated=list(self.recalculated),
            saved=None,
        )

    def go_back(self) -> None:
        assert self.saved is not None
        back = self.saved
        self.written, self.asked, self.locked = back.written, back.asked, back.locked
        self.truncates, self.recalculated = back.truncates, back.recalculated
        self.save()

    def _ask_for(self, old: Row | None, new: Row | None) -> None:
        if not self.app.attached:
            return
        row = old or new
        match row:
            case User():
                self.ask(row.name)
            case Project():
                for side in (old, new):
                    if isinstance(side, Project):
                        self.ask(side.owner)
                if isinstance(old, Project) and isinstance(new, Project):
                    self.asked.projects += [row.name] * (old.owner != new.owner)
            case Collaboration():
                if self._counts(old) != self._counts(new):
                    self.ask(row.user)
                    self.asked.projects.append(row.project)
            case None:
                pass

    def _counts(self, row: Row | None) -> bool:
        confirmed = self.app.formula.confirmed if self.confirmed is None else self.confirmed
        return isinstance(row, Collaboration) and row.status in confirmed


@dataclass
class Application:
    """What is committed, who is to be recalculated for it, and what has become of that."""

    rows: Rows = field(default_factory=dict[Key, Row])
    formula: Formula = field(
        default_factory=lambda: Formula(
            maximum={"shipped": 30, "vouches": 25, "impact": 20, "profile": 15, "age": 10},
            scale={"shipped": 10, "vouches": 8, "impact": 4, "profile": 15, "age": 10},
            shipped={"shipped"},
            confirmed={"confirmed"},
            impact_keys={"users"},
        )
    )
    attached: bool = True
    window: float = 0.0
    last: dict[str, float] = field(default_factory=dict[str, float])
    """When each user was last recalculated."""

    scores: dict[str, tuple[Decimal | None, Decimal | None]] = field(
        default_factory=dict[str, tuple[Decimal | None, Decimal | None]]
    )
    """The score of that time, and the one before it that was another."""

    sequence: int = 0
    asked: defaultdict[str, list[Ask]] = field(default_factory=lambda: defaultdict(list[Ask]))
    asked_projects: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    asked_everyone: list[int] = field(default_factory=list[int])

    def users(self) -> list[str]:
        return sorted(row.name for row in self.rows.values() if isinstance(row, User))

    def commit(self, done: Transaction) -> None:
        self.sequence += 1
        for key, row in done.written.items():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        for user, forced in done.asked.users:
            self.asked[user].append(Ask(self.sequence, forced))
        self.asked_projects += [(self.sequence, project) for project in done.asked.projects]
        if done.asked.everyone:
            self.ask_everyone()

    def ask_everyone(self) -> None:
        self.sequence += 1
        self.asked_everyone.append(self.sequence)

    def expand(self) -> None:
        """Turn what is asked of projects and of everyone into what is asked of people, as now."""
        for at, project in self.asked_projects:
            for user in self.circle(project):
                self.asked[user].append(Ask(at))
        for at in self.asked_everyone:
            for user in self.users():
                self.asked[user].append(Ask(at))

    def circle(self, project: str) -> set[str]:
        """The owner and the confirmed collaborators."""
        people: set[str] = set()
        for row in self.rows.values():
            if isinstance(row, Project) and row.name == project:
                people.add(row.owner)
            elif isinstance(row, Collaboration) and row.project == project:
                people |= {row.user} if row.status in self.formula.confirmed else set()
        return people

    def is_forced(self, user: str) -> bool:
        return any(ask.forced for ask in self.asked[user])

    def window_is_open(self, user: str, now: float) -> bool:
        return user in self.last and now - self.last[user] < self.window

    def is_ageing(self, user: str, now: float) -> bool:
        """Whether the daily refresh concerns the user, who has not been looked at for a week."""
        row = self.rows[("user", user)]
        assert isinstance(row, User)
        most, scale = self.formula.maximum["age"], self.formula.scale["age"]
        last = self.last.get(user)
        if last is None or most == 0 or scale == 0:
            return False
        return now - last > 7 * DAY and last < row.born + -(-365 * most // scale) * DAY

    def recalculated(self, user: str, at: float, seen: int, forced: bool = False) -> None:
        """Hold one recalculation to what is promised: asked for, and not within a window.

        Args:
            user: Whose.
            at: When.
            seen: What was asked for later than this is not answered.
            forced: By recalculate(), which asks nobody.
        """
        asks = [ask for ask in self.asked[user] if ask.at <= seen]
        if not forced:
            assert asks, f"{user} is recalculated for nothing"
            if not any(ask.forced for ask in asks) and user in self.last:
                gap = at - self.last[user]
                assert gap >= self.window - 0.001, f"{user}: {gap:.3f} s after the last one"
        self.asked[user] = [ask for ask in self.asked[user] if ask.at > seen]
        self.last[user] = at

    def forget(self, user: str) -> None:
        self.last.pop(user, None)
        self.scores.pop(user, None)

    def scored(self, user: str, score: Decimal, previous: Decimal | None) -> None:
        last, before = self.scores.get(user, (None, None))
        expected = last if last != score else before
        assert previous == expected, f"{user}: previous score {previous} instead of {expected}"
        self.scores[user] = score, expected

    def score(self, user: str) -> int:
        """What users.builder_score should hold: age as of the last recalculation."""
        row = self.rows[("user", user)]
        assert isinstance(row, User)
        fields = (*oracle.TEXT_FIELDS, "contact_links")
        profile = {field: getattr(row, field) for field in fields}
        person = oracle.Person(user, profile, Decimal(row.born), Decimal(self.last[user]), None)
        return int(oracle.score_of(person, self._community()).stored)

    def _community(self) -> oracle.Community:
        rows = self.rows.values()
        projects = [
            oracle.Project(
                row.name, row.owner, row.status, Decimal(row.stars), json_object(row.metrics)
            )
            for row in rows
            if isinstance(row, Project)
        ]
        collaborations = [
            oracle.Collaboration(row.project, row.user, row.status)
            for row in rows
            if isinstance(row, Collaboration)
        ]
        return oracle.Community([], projects, collaborations, self.formula, decimals=0)
