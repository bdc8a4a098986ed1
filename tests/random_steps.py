"""What an application does in random histories: steps of transactions, told to model.py as well."""

from dataclasses import replace
from typing import Any

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests import oracle
from tests.inputs import (
    AGES,
    COLLABORATION_STATUSES,
    LINKS,
    METRICS,
    PROJECT_STATUSES,
    STARS,
    TEXTS,
)
from tests.model import DAY, Collaboration, Project, Row, Transaction, User
from tests.promises import HOUR, History
from tests.stage import IDS, PROJECTS, SESSIONS, USERS
from tests.statements import run

LEVEL = st.sampled_from(["read committed", "repeatable read", "serializable"])

EDIT = st.one_of(
    *[st.tuples(st.just(field), TEXTS) for field in oracle.TEXT_FIELDS],
    st.tuples(st.just("contact_links"), LINKS),
)
WHO = st.sampled_from(USERS)
WHICH = st.sampled_from(PROJECTS)
SESSION = st.sampled_from(SESSIONS)
TRANSACTION = st.sampled_from(SESSIONS[1:])


class Steps(History):
    @rule(session=TRANSACTION, level=LEVEL)
    def begin(self, session: str, level: str) -> None:
        if session not in self.open:
            run(self.stage.sessions[session], f"begin isolation level {level}; select 1")
            isolated = level != "read committed"
            self.open[session] = Transaction(
                self.app,
                dict(self.app.rows) if isolated else None,
                set(self.app.formula.confirmed) if isolated else None,
            )

    @rule(session=TRANSACTION)
    @precondition(lambda self: self.open)
    def commit(self, session: str) -> None:
        if transaction := self.open.get(session):
            try:
                run(self.stage.sessions[session], "commit")
            except psycopg.Error as error:
                self._conflict(error, session, transaction)
                return
            del self.open[session]
            self._committed(transaction)

    @rule(session=TRANSACTION)
    @precondition(lambda self: self.open)
    def roll_back(self, session: str) -> None:
        if self.open.pop(session, None):
            run(self.stage.sessions[session], "rollback")

    @rule(session=TRANSACTION)
    @precondition(lambda self: self.open)
    def savepoint(self, session: str) -> None:
        if transaction := self.open.get(session):
            run(self.stage.sessions[session], "savepoint a")
            transaction.save()

    @rule(session=TRANSACTION)
    @precondition(lambda self: any(transaction.saved for transaction in self.open.values()))
    def roll_back_to_savepoint(self, session: str) -> None:
        transaction = self.open.get(session)
        if transaction and transaction.saved:
            run(self.stage.sessions[session], "rollback to a")
            transaction.go_back()

    def _write(self, session: str, row: Row | None, query: str, *values: Any) -> None:
        """Insert or update a row; None: one that the application does not see."""
        with self.writing(session) as (transaction, connection):
            cursor = connection.execute(query.encode(), values)
            assert cursor.rowcount == (row is not None), f"{cursor.rowcount} rows: {query}"
            if row is not None:
                transaction.put(row)

    def _seen(self, session: str) -> Transaction:
        return self.open.get(session) or Transaction(self.app, None, None)

    @rule(session=SESSION, who=WHO, bio=TEXTS, role=TEXTS, links=LINKS, age=AGES)
    def sign_up(
        self, session: str, who: str, bio: str | None, role: str | None, links: str, age: int
    ) -> None:
        if self._seen(session).user(who):
            return
        born = self.now() - age * DAY - DAY / 2
        self._write(
            session,
            User(who, bio, role, links, born),
            "insert into users (id, username, email, bio, primary_role, contact_links, created_at)"
            " values (%s, %s, %s, %s, %s, %s, to_timestamp(%s))",
            *(IDS[who], who, f"{who}@example.org", bio, role, links, born - self.moved),
        )

    @rule(
        session=SESSION,
        who=WHO,
        edit=EDIT,
    )
    def edit_profile(self, session: str, who: str, edit: tuple[str, str | None]) -> None:
        user = self._seen(session).user(who)
        column, value = edit
        query = f"update users set {column} = %s where id = %s"
        edited = user and replace(user, **{column: value})  # pyright: ignore[reportArgumentType]
        self._write(session, edited, query, value, IDS[who])

    @rule(who=WHO, edit=EDIT)
    def edit_profile_beside_no_other_write(self, who: str, edit: tuple[str, str | None]) -> None:
        self.work("one", HOUR)
        self.edit_profile("direct", who, edit)
        self.work("two")

    @rule(session=SESSION, who=WHO, age=AGES)
    def move_birthday(self, session: str, who: str, age: int) -> None:
        user = self._seen(session).user(who)
        born = self.now() - age * DAY - DAY / 2
        self._write(
            session,
            user and replace(user, born=born),
            "update users set created_at = to_timestamp(%s) where id = %s",
            *(born - self.moved, IDS[who]),
        )

    @rule(session=SESSION, who=WHO, asks=st.booleans())
    def save_stale_user(self, session: str, who: str, asks: bool) -> None:
        """All columns, as an ORM does it: the score of long ago, or as it is."""
        score = "case when builder_score is null then 7 end" if asks else "builder_score"
        with self.writing(session) as (transaction, connection):
            query = f"update users set builder_score = {score}, updated_at = now() where id = %s"
            connection.execute(query.encode(), [IDS[who]])
            if transaction.user(who):
                transaction.locked.add(who)
                if asks and self.app.attached:
                    transaction.ask(who)

    @rule(session=SESSION, who=WHO)
    def leave(self, session: str, who: str) -> None:
        with self.writing(session) as (transaction, connection):
            connection.execute("delete from users where id = %s", [IDS[who]])
            if user := transaction.user(who):
                transaction.remove(user)

    @rule(
        session=SESSION,
        which=WHICH,
        owner=WHO,
        status=PROJECT_STATUSES,
        stars=STARS,
        metrics=METRICS,
    )
    def start_project(
        self, session: str, which: str, owner: str, status: str, stars: int, metrics: str
    ) -> None:
        seen = self._seen(session)
        if seen.project(which) or not seen.user(owner):
            return
        self._write(
            session,
            Project(which, owner, status, stars, metrics),
            "insert into projects (id, owner_id, title, status, github_stars, impact_metrics)"
            " values (%s, %s, %s, %s, %s, %s)",
            *(IDS[which], IDS[owner], which, status, stars, metrics),
        )

    @rule(session=SESSION, which=WHICH, status=PROJECT_STATUSES, stars=STARS, metrics=METRICS)
    def edit_project(self, session: str, which: str, status: str, stars: int, metrics: str) -> None:
        project = self._seen(session).project(which)
        self._write(
            session,
            project and replace(project, status=status, stars=stars, metrics=metrics),
            "update projects set status = %s, github_stars = %s, impact_metrics = %s where id = %s",
            *(status, stars, metrics, IDS[which]),
        )

    @rule(which=WHICH, stars=st.lists(STARS, min_size=3, max_size=6))
    def burst_of_stars(self, which: str, stars: list[int]) -> None:
        for number in stars:
            self.edit_project("direct", which, "shipped", number, "{}")

    @rule(session=SESSION, status=PROJECT_STATUSES)
    def move_all_projects(self, session: str, status: str) -> None:
        with self.writing(session) as (transaction, connection):
            connection.execute("update projects set status = %s", [status])
            for row in transaction.rows().values():
                if isinstance(row, Project):
                    transaction.put(replace(row, status=status))

    @rule(session=SESSION, which=WHICH, to=WHO)
    def transfer(self, session: str, which: str, to: str) -> None:
        seen = self._seen(session)
        project = seen.project(which)
        if project and seen.user(to):
            query = "update projects set owner_id = %s, title = 'new' where id = %s"
            self._write(session, replace(project, owner=to), query, IDS[to], IDS[which])

    @rule(session=SESSION, which=WHICH)
    def delete_project(self, session: str, which: str) -> None:
        with self.writing(session) as (transaction, connection):
            connection.execute("delete from projects where id = %s", [IDS[which]])
            if project := transaction.project(which):
                transaction.remove(project)

    @rule(session=SESSION, which=WHICH, who=WHO, status=COLLABORATION_STATUSES)
    def invite(self, session: str, which: str, who: str, status: str) -> None:
        seen = self._seen(session)
        if seen.collaboration(which, who) or not (seen.project(which) and seen.user(who)):
            return
        self._write(
            session,
            Collaboration(which, who, status),
            "insert into project_collaborators (project_id, user_id, status) values (%s, %s, %s)",
            *(IDS[which], IDS[who], status),
        )

    @rule(session=SESSION, which=WHICH, who=WHO, status=COLLABORATION_STATUSES)
    def answer(self, session: str, which: str, who: str, status: str) -> None:
        collaboration = self._seen(session).collaboration(which, who)
        self._write(
            session,
            collaboration and replace(collaboration, status=status),
            "update project_collaborators set status = %s where project_id = %s and user_id = %s",
            *(status, IDS[which], IDS[who]),
        )

    @rule(session=SESSION, which=WHICH, who=WHO, to_project=WHICH, to_user=WHO)
    def move_collaboration(
        self, session: str, which: str, who: str, to_project: str, to_user: str
    ) -> None:
        seen = self._seen(session)
        old = seen.collaboration(which, who)
        possible = seen.project(to_project) and seen.user(to_user)
        if not old or not possible or seen.collaboration(to_project, to_user):
            return
        with self.writing(session) as (transaction, connection):
            connection.execute(
                "update project_collaborators set project_id = %s, user_id = %s"
                " where project_id = %s and user_id = %s",
                [IDS[to_project], IDS[to_user], IDS[which], IDS[who]],
            )
            transaction.remove(old)
            transaction.put(replace(old, project=to_project, user=to_user))

    @rule(which=WHICH, who=WHO, to_project=WHICH, to_user=WHO)
    def move_collaboration_beside_no_other_write(
        self, which: str, who: str, to_project: str, to_user: str
    ) -> None:
        self.invite("direct", which, who, "confirmed")
        self.end_collaboration("direct", to_project, to_user)
        self.work("one", HOUR)
        self.move_collaboration("direct", which, who, to_project, to_user)
        self.work("two")

    @rule(session=SESSION, which=WHICH, who=WHO)
    def end_collaboration(self, session: str, which: str, who: str) -> None:
        with self.writing(session) as (transaction, connection):
            connection.execute(
                "delete from project_collaborators where project_id = %s and user_id = %s",
                [IDS[which], IDS[who]],
            )
            if old := transaction.collaboration(which, who):
                transaction.remove(old)

    @rule(session=SESSION, table=st.sampled_from(["users", "projects", "project_collaborators"]))
    def truncate(self, session: str, table: str) -> None:
        kinds = {"users": {"user", "project", "collaboration"}, "projects": {"project"}}
        with self.writing(session) as (transaction, connection):
            run(connection, f"truncate {table} cascade")
            transaction.truncate(kinds.get(table, set()) | {"collaboration"})
