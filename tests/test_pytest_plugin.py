"""The pytest plugin, as an application uses it: in a suite and a process of its own."""

from collections.abc import Callable

import psycopg
import pytest

from pyscore import migrator
from tests.community import one

pytest_plugins = ["pytester"]

CONFTEST = """
import pytest
import sqlalchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str]
    bio: Mapped[str | None]
    builder_score: Mapped[float] = mapped_column(default=0)

class Project(Base):
    __tablename__ = "projects"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(sqlalchemy.ForeignKey("users.id"))
    status: Mapped[str] = mapped_column(default="draft")

class Collaborator(Base):
    __tablename__ = "project_collaborators"
    project_id: Mapped[int] = mapped_column(sqlalchemy.ForeignKey("projects.id"), primary_key=True)
    user_id: Mapped[int] = mapped_column(sqlalchemy.ForeignKey("users.id"), primary_key=True)
    status: Mapped[str]

@pytest.fixture(scope="session")
def engine():
    engine = sqlalchemy.create_engine("%s", poolclass=sqlalchemy.NullPool)
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)

@pytest.fixture(scope="session")
def builder_score_dsn(engine):
    return engine.url.set(password="s3cret")

@pytest.fixture
def session(engine):
    # the usual way: nothing that a test does is ever committed
    with engine.connect() as connection:
        transaction = connection.begin()
        with Session(
            connection, join_transaction_mode="create_savepoint", autoflush=False
        ) as session:
            yield session
        transaction.rollback()
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, empty_database: str) -> Run:
    """Run a suite against an application's own database."""

    def run_suite(suite: str, *, conftest: str = CONFTEST) -> pytest.RunResult:
        url = empty_database.replace("postgresql://", "postgresql+psycopg://")
        pytester.makeconftest(conftest.replace("%s", url))
        pytester.makepyfile(suite)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error")

    return run_suite


def test_a_test_that_never_commits_sees_its_scores(run: Run, empty_database: str) -> None:
    run(
        """
        import pytest
        from sqlalchemy import text
        from conftest import Collaborator, Project, User

        @pytest.mark.parametrize("time", [1, 2])
        def test_shipping_counts_each_time(session, drain_scores, time):
            ada, bo = User(username="ada"), User(username="bo")
            session.add_all([ada, bo])  # not flushed: drain_scores does
            drain_scores(session)
            assert (ada.builder_score, bo.builder_score) == (0, 0)
            project = Project(owner_id=ada.id, status="shipped")
            session.add(project)
            session.flush()
            session.add(Collaborator(project_id=project.id, user_id=bo.id, status="confirmed"))
            drain_scores(session)  # again at once: there is no debounce
            assert (ada.builder_score, bo.builder_score) == (18, 8)
            assert session.scalar(text("select count(*) from users")) == 2

        def test_everyone_is_computed(session, drain_scores):
            session.add_all(User(username=f"user {n}", bio="ships") for n in range(50))
            session.flush()
            session.execute(text("delete from builder_score.score_recalc_queue"))
            session.execute(text("update builder_score.settings set backfill_per_second = 45"))
            session.execute(text("select builder_score.enqueue_everyone()"))
            drain_scores(session)
            assert {user.builder_score for user in session.query(User)} == {15}
            session.execute(text("update builder_score.signals set max_points = 0"))
            drain_scores(session)
            assert {user.builder_score for user in session.query(User)} == {0}

        def test_the_transactions_settings_are_left_as_they_were(session, drain_scores):
            session.execute(text("set local lock_timeout = '7s'"))
            drain_scores(session)
            assert session.scalar(text("show lock_timeout")) == "7s"
            assert session.scalar(text("show synchronous_commit")) == "on"

        def test_a_psycopg_connection_will_do(engine, drain_scores):
            with engine.connect() as connection:
                raw = connection.connection.driver_connection
                raw.execute(
                    "insert into users (username, bio, builder_score) values ('eve', 'ships', 0)"
                )
                drain_scores(raw)
                (score,) = raw.execute("select builder_score from users").fetchone()
                assert score == 15
                raw.rollback()
        """
    ).assert_outcomes(passed=5)
    with psycopg.connect(empty_database) as after:
        assert one(after, "select to_regnamespace('builder_score') is null"), "taken out again"


def test_a_test_that_commits_sees_its_scores(run: Run) -> None:
    run(
        """
        from sqlalchemy import text
        from conftest import Project, User
        from sqlalchemy.orm import Session

        def test_shipping_counts(engine, builder_score_database, drain_scores):
            assert ":s3cret@" in builder_score_database  # str(engine.url) would hide it
            with Session(engine) as session:
                ada = User(username="ada")
                session.add(ada)
                session.commit()
                drain_scores()
                session.add(Project(owner_id=ada.id, status="shipped"))
                session.commit()
                drain_scores()
                session.refresh(ada)
                assert ada.builder_score == 10
        """
    ).assert_outcomes(passed=1)


def test_what_cannot_be_computed_fails_the_test_and_says_why(run: Run) -> None:
    result = run(
        """
        from sqlalchemy import text
        from conftest import User

        def test_locked(engine, session, drain_scores):
            with engine.begin() as other:
                other.execute(text("insert into users (username, builder_score) values ('ada', 0)"))
            session.execute(text("select 1 from users for update"))
            drain_scores()

        def test_failing(engine, drain_scores):
            with engine.begin() as other:
                other.execute(text(
                    "create function no() returns trigger language plpgsql as"
                    " 'begin raise exception ''not today''; end'"
                ))
                other.execute(text(
                    "create trigger no before update of builder_score on users"
                    " for each row execute function no()"
                ))
                other.execute(text(
                    "insert into users (username, bio, builder_score) values ('bo', 'ships', 0)"
                ))
            drain_scores()
        """
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*PyscoreError: 1 queue rows are left: another transaction holds their users;*",
            "*PyscoreError: 1 scores cannot be computed: P0001: not today",
        ]
    )


def test_an_application_that_does_not_say_where_is_told_to(run: Run) -> None:
    result = run("def test_scores(drain_scores): pass", conftest="")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*UsageError: override the fixture builder_score_dsn in conftest.py*"]
    )


def test_a_database_of_each_test_works_too(
    run: Run, pytester: pytest.Pytester, empty_database: str
) -> None:
    pytester.makeini("[pytest]\nbuilder_score_scope = function\n")
    conftest = CONFTEST.replace('scope="session"', 'scope="function"')
    suite = """
        def test_one(builder_score_database): pass
        def test_two(builder_score_database): pass
    """
    run(suite, conftest=conftest).assert_outcomes(passed=2)
    pytester.makeini("[pytest]\nbuilder_score_scope = weekly\n")
    result = run(suite, conftest=conftest)
    result.stderr.fnmatch_lines(["*builder_score_scope = weekly: expected one of session, *"])


SOMEWHERE = """
    import pytest

    @pytest.fixture(scope="session")
    def builder_score_dsn():
        return "%s"
"""


def test_a_schema_that_was_there_stays_with_its_settings(run: Run, empty_database: str) -> None:
    migrator.upgrade(empty_database)
    suite = """
        import psycopg

        def test(builder_score_database, drain_scores):
            drain_scores()
            with psycopg.connect(builder_score_database, autocommit=True) as db:
                query = "select debounce_window::text from builder_score.settings"
                assert db.execute(query).fetchall() == [("00:05:00",)], "a killed run changes none"
    """
    run(suite, conftest=SOMEWHERE).assert_outcomes(passed=1)
    with psycopg.connect(empty_database) as app:
        assert one(app, "select debounce_window::text from builder_score.settings") == "00:05:00"


def test_the_database_can_be_copied_meanwhile(run: Run, empty_database: str) -> None:
    suite = """
        import psycopg
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        def test(builder_score_database, drain_scores):
            drain_scores()
            name = conninfo_to_dict(builder_score_database)["dbname"]
            elsewhere = make_conninfo(builder_score_database, dbname="postgres")
            with psycopg.connect(elsewhere, autocommit=True) as db:
                db.execute(f"create database {name}_copy template {name}")
                db.execute(f"drop database {name}_copy")
    """
    run(suite, conftest=SOMEWHERE).assert_outcomes(passed=1)


def test_what_stands_in_the_way_is_said(run: Run) -> None:
    run(
        """
        import pytest
        from sqlalchemy import text
        from pyscore import PyscoreError

        def test_an_engine_is_no_transaction(engine, drain_scores):
            with pytest.raises(PyscoreError, match="connection or session .*; not Engine"):
                drain_scores(engine)

        @pytest.mark.parametrize(
            ("statement", "why"),
            [
                ("update builder_score.settings set paused = true", "builder_score is paused"),
                ("select builder_score.detach()", "builder_score is detached"),
            ],
        )
        def test_nothing_works(session, drain_scores, statement, why):
            session.execute(text("insert into users (username, builder_score) values ('a', 0)"))
            session.execute(text(statement))
            with pytest.raises(PyscoreError, match=why):
                drain_scores(session)
        """
    ).assert_outcomes(passed=3)


def test_a_transaction_that_a_test_left_open_is_an_error_not_a_hang(run: Run) -> None:
    conftest = (
        CONFTEST
        + """

@pytest.fixture(scope="session")
def left_open(engine):
    connection = engine.connect()
    yield connection
    connection.close()
"""
    )
    result = run(
        """
        from sqlalchemy import text

        def test(left_open, builder_score_database):
            left_open.execute(text("select * from users"))
        """,
        conftest=conftest,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*lock*"])
