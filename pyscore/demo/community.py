"""Act one, a small community: one newcomer's first minutes, commit by commit and score by score."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rich.table import Table
from rich.text import Text

from pyscore import drawing
from pyscore.demo.builders import BUILDERS, load
from pyscore.demo.stage import Stage, step
from pyscore.demo.waiting import PATIENCE, look, wait_for_worker, wait_until_idle
from pyscore.demo.watching import Arrival, View, arrivals, view
from pyscore.errors import PyscoreError
from pyscore.scores import tier_of

PERSON = "ines"
"""The newcomer; whom to look at afterwards."""

WINDOW = timedelta(seconds=3)

POLL = 0.02  # seconds

SIGN_UP = """\
insert into users (username, display_name, email)
values ('ines', 'Ines Marlow', 'ines@example.org')"""

PROFILE = [
    f"update users set {column} = '{value}'\nwhere username = 'ines'"
    for column, value in (
        ("headline", "Tiny radios, big ears"),
        ("bio", "I take radios apart; some work again."),
        ("avatar_url", "/avatars/ines.png"),
        ("primary_role", "hardware"),
        ("timezone", "Europe/Lisbon"),
        ("contact_links", '{"web": "https://ines.example"}'),
    )
]

START = """\
insert into projects (owner_id, title)
select id, 'Pocket Radio' from users where username = 'ines'"""

INVITE = """\
insert into project_collaborators (project_id, user_id)
select p.id, u.id from projects as p, users as u
where p.title = 'Pocket Radio' and u.username = 'tomas'"""

CONFIRM = """\
update project_collaborators as c
set status = 'confirmed', confirmed_at = now()
from projects as p
where p.id = c.project_id and p.title = 'Pocket Radio'"""

SHIP = """\
update projects set status = 'shipped'
where title = 'Pocket Radio'"""

NEWS = [
    f"update projects set github_stars = {2 * n},\n"
    f"impact_metrics = '{{\"users\": {9 * n}}}' where title = 'Pocket Radio'"
    for n in range(1, 31)
]

_LEADERS = """
    select username, display_name, builder_score from users
    where builder_score is not null
    order by builder_score desc, username
"""


def play(stage: Stage, *, window: timedelta = WINDOW, patience: float = PATIENCE) -> None:
    """Load the community, follow the newcomer, and show the scores.

    Args:
        stage: Where to play; its tables are empty.
        window: The debounce, short enough to be watched; it stays so afterwards.
        patience: Seconds without a score after which something must be wrong.
    """
    console = stage.console
    seconds = f"{window.total_seconds():g} s"
    stage.connection.execute("update builder_score.settings set debounce_window = %s", [window])
    since = look(stage)["now"]
    stage.worker.begin(stage)
    wait_for_worker(stage, since, patience=patience)
    wait_until_idle(stage, patience=patience)
    drawing.heading(console, "Act one: a small community, and somebody who joins it")
    _settle_in(stage, patience)
    console.print(
        "\nWhoever was not computed lately is computed at once. Whatever happens within the\n"
        "debounce window after that is computed together, once, when the window closes.\n"
        f"The window is {seconds} here, so that you can watch it; by default it is 5 minutes.\n"
        "An idle worker looks about twice a second. +: seconds since the last commit.",
        markup=False,
    )

    story = Story(stage, window, patience)
    story.tell("Ines Marlow signs up", "Nobody has computed her before: at once.")
    story.commit(SIGN_UP)
    story.settle()

    story.tell("She fills in her profile", "One commit a field, all within her window.")
    story.commit(PROFILE[0])
    story.commit_more(PROFILE[1:], "bio, avatar, role, timezone, links")
    story.settle()

    story.tell(
        "She starts a project and invites Tomas, who confirms",
        "An invitation counts for nothing; once confirmed, it counts for both of them.",
    )
    story.commit(START)
    story.commit(INVITE)
    story.commit(CONFIRM)
    story.settle()

    story.wait_for_window(PERSON)
    story.tell("She ships it", "Her window has closed meanwhile: at once.")
    story.commit(SHIP)
    story.settle()

    story.tell("Word gets round", "Users and stars come in, a commit each time.")
    story.commit(NEWS[0])
    story.commit_more(NEWS[1:], "up to 60 stars and 270 users")
    story.settle()

    show_leaders(stage)
    show_why(stage)


class Story:
    """Does what the application does, and says what happens, as it happens, on one clock.

    Attributes:
        seen: The last look at everybody's scores.
    """

    def __init__(self, stage: Stage, window: timedelta, patience: float):
        """Start the clock.

        Args:
            stage: Where to play.
            window: The debounce window.
            patience: Seconds without a score after which something must be wrong.
        """
        self.seen = view(stage)
        self._stage = stage
        self._window = window
        self._patience = patience
        self._began = time.monotonic()
        self._commits = 0
        self._first_commit_at = self.seen.now
        self._last_commit = self._began

    def tell(self, title: str, why: str) -> None:
        """Begin a chapter."""
        drawing.heading(self._stage.console, title)
        self._stage.console.print(why, markup=False)
        self._commits = 0

    def commit(self, statement: str) -> None:
        """Run a statement as a transaction of its own; print it and the moment of its commit."""
        self._execute(statement)
        first, *others = statement.splitlines()
        self._print("commit", first)
        for line in others:
            self._print_below(line)

    def commit_more(self, statements: Sequence[str], what: str) -> None:
        """Run statements like the last one, each as a transaction, and print that in short."""
        for statement in statements:
            self._execute(statement)
        self._print("commit", f"{len(statements)} more like it: {what}")

    def settle(self) -> None:
        """Wait until all is computed; print each score that comes, and how often was computed."""
        before = self.seen
        with self._stage.console.status("") as status:

            def show(seen: View) -> None:
                status.update(f"{seen.queued} queued; {self._window_of(PERSON, seen)}")

            coming = arrivals(self._stage, before, patience=self._patience, while_waiting=show)
            while True:
                try:
                    self._print_arrival(next(coming))
                except StopIteration as stop:
                    self.seen = stop.value
                    break
        recalculations = self.seen.recalculated - before.recalculated
        self._print_below(
            f"{_count(self._commits, 'commit')}, {_count(recalculations, 'recalculation')}"
        )

    def wait_for_window(self, username: str) -> None:
        """Let time pass until a person's debounce window has closed."""
        console = self._stage.console
        console.print()
        self._print("", "for a while nobody does anything ...")
        with console.status("") as status:
            while left := self.seen.closes_in(username, self._window):
                status.update(self._window_of(username, self.seen))
                time.sleep(min(left, POLL))
                self.seen = view(self._stage)

    def _window_of(self, username: str, seen: View) -> str:
        left = seen.closes_in(username, self._window)
        return f"the window closes in {left:.1f} s" if left else "no window is open"

    def _execute(self, statement: str) -> None:
        if self._commits == 0:
            self._first_commit_at = datetime.now(UTC)
        self._stage.connection.execute(statement.encode())
        self._last_commit = time.monotonic()
        self._commits += 1

    def _print(self, what: str, text: str) -> None:
        clock = time.monotonic() - self._began
        self._stage.console.print(f"{clock:>7.2f} s  {what:<7} {text}", markup=False)

    def _print_below(self, text: str) -> None:
        self._stage.console.print(f"{'':<19}{text}", markup=False)

    def _print_arrival(self, arrival: Arrival) -> None:
        now = time.monotonic()
        if arrival.last_at is None:
            why = "at once, her first"
        elif arrival.last_at + self._window <= self._first_commit_at:
            why = "at once"
        else:
            why = f"as the {self._window.total_seconds():g} s window closed"
        before = "new" if arrival.before is None else arrival.before
        line = Text(f"{now - self._began:>7.2f} s  score   ")
        line.append(f"{arrival.name:<12}{before:>3} -> {arrival.after:>3}", style="bold green")
        line.append(f"  +{now - self._last_commit:.2f} s: {why}")
        self._stage.console.print(line)


def show_leaders(stage: Stage) -> None:
    """Print everybody's score, tier and a bar, the highest score first."""
    drawing.heading(stage.console, "The leaderboard")
    full = drawing.ASCII_FULL if stage.console.options.ascii_only else drawing.FULL
    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("builder")
    table.add_column("score", justify="right")
    table.add_column("tier")
    table.add_column("")
    for place, row in enumerate(stage.connection.execute(_LEADERS).fetchall(), start=1):
        username, name, score = row
        style = "bold green" if username == PERSON else None
        drawn = drawing.bar(score, 100, 40, full=full)
        table.add_row(str(place), name, str(score), str(tier_of(score)), drawn, style=style)
    stage.console.print(table)


def show_why(stage: Stage) -> None:
    """Print what the newcomer's score is made of."""
    row = stage.connection.execute(
        "select id, display_name, builder_score from users where username = %s", [PERSON]
    ).fetchone()
    if row is None:
        raise PyscoreError(f"{PERSON} is no longer among the users")
    user_id, name, score = row
    drawing.heading(stage.console, f"Why {name} has a score of {score}")
    signals = stage.connection.execute(
        "select signal, raw, points, max_points from builder_score.explain(%s)", [user_id]
    ).fetchall()
    stage.console.print(drawing.explanation(signals, ascii_only=stage.console.options.ascii_only))
    stage.console.print(
        "raw: projects shipped, people who vouch by a confirmed collaboration, stars and\n"
        "users, the share of the profile that is filled in, days since sign-up.",
        markup=False,
    )


def _settle_in(stage: Stage, patience: float) -> None:
    """Load the community in one transaction and wait for its first scores."""
    connection = stage.connection
    with step(stage.console, "load a community") as remarks:
        before = view(stage)
        with connection.transaction():
            rows = load(connection, BUILDERS)
            events = stage.one("select count(*) from builder_score.score_recalc_queue")
        remarks += [
            f"{rows['users']} people, {rows['projects']} projects,",
            f"{rows['project_collaborators']} collaborations, in one transaction",
        ]
    with step(stage.console, "score everyone") as remarks:
        coming = arrivals(stage, before, patience=patience, while_waiting=lambda _: None)
        people = len(list(coming))
        recalculations = view(stage).recalculated - before.recalculated
        remarks += [
            f"{events} events coalesced into {recalculations} recalculations",
            f"of {people} people",
        ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
