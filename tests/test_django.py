"""The reading guide's Django code, in a project of Django's own; each step is a process of its own.

What these processes run is text here, since Django's settings are a process's for good.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests import reading_guide
from tests.commands import ROOT, environment
from tests.community import one
from tests.conftest import janitor
from tests.interleave import Sessions
from tests.statements import run

CODE = [block.body for block in reading_guide.blocks("Django", "python")]
FILES = {found[1]: body for body in CODE if (found := re.match(r"# (\S+\.py)\n", body))}
"""Those that begin with a file's name."""
SCORE, BIO = (f"people/migrations/{name}.py" for name in ("0002_builder_score", "0003_bio"))
IN_A_SHELL = "".join(body for body in CODE if body not in FILES.values())

SETTINGS = """
import os
SECRET_KEY = "secret"
USE_TZ = True
INSTALLED_APPS = ["people"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": os.environ["PGDATABASE"],
    "HOST": os.environ["PGHOST"],
    "PORT": os.environ["PGPORT"],
    "USER": "postgres",
}}
"""

OTHER_MODELS = """

class Project(models.Model):
    owner = models.ForeignKey(User, models.CASCADE)
    status = models.TextField(default="draft")

    class Meta:
        db_table = "projects"


class Collaborator(models.Model):
    project = models.ForeignKey(Project, models.CASCADE)
    user = models.ForeignKey(User, models.CASCADE)
    status = models.TextField(default="pending")

    class Meta:
        db_table = "project_collaborators"
"""

MODELS = FILES["people/models.py"] + OTHER_MODELS
# as they were before anybody heard of us
MODELS_BEFORE = re.sub(r"    builder_score = .*\n|        indexes = \[.*\]\n", "", MODELS)


# Runs what it is given as the guide's code is run.
START = """
import sys
import django
django.setup()
from django.core.management import call_command
from tests import reading_guide
reading_guide.run(sys.stdin.read(), {"call_command": call_command})
"""


@dataclass(frozen=True)
class Project:
    """A project of Django's, and its database."""

    directory: Path
    server: PrivateCluster
    database: str

    @property
    def address(self) -> str:
        return self.server.conninfo(self.database)

    def write(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def python(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        variables = environment(
            PGHOST=str(self.server.host),
            PGPORT=str(self.server.port),
            PGDATABASE=self.database,
            DJANGO_SETTINGS_MODULE="settings",
            PYTHONPATH=os.pathsep.join([str(self.directory), str(ROOT)]),
        )
        return subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            input=stdin,
            cwd=self.directory,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def shell(self, code: str) -> str:
        """Run some code that has to succeed, a statement at a time, and give what it printed."""
        done = self.python("-c", START, stdin=code)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def before(server: PrivateCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """An application without us, at its first migration; a template of databases."""
    with janitor(server, "django_before", as_template=True):
        project = Project(tmp_path_factory.mktemp("django"), server, "django_before")
        project.write("settings.py", SETTINGS)
        project.write("people/migrations/__init__.py", "")
        project.write("people/models.py", MODELS_BEFORE)
        project.shell("call_command('makemigrations', 'people'); call_command('migrate')")
        project.write("people/migrations/0002_builder_score.py", FILES[SCORE])
        project.write("people/models.py", MODELS)
        yield project


@pytest.fixture
def project(before: Project) -> Iterator[Project]:
    """The application of the guide, with a database at its first migration."""
    with janitor(before.server, "django", template=before.database):
        yield Project(before.directory, before.server, "django")


MIGRATE = "call_command('migrate', verbosity=0)\n"
CHECK = "call_command('makemigrations', '--check')\n"


@pytest.fixture(scope="module")
def installed(before: Project) -> Iterator[str]:
    """A template, with us installed, and then Django's migration applied."""
    with janitor(
        before.server, "django_installed", template=before.database, as_template=True
    ) as address:
        migrator.upgrade(address)
        Project(before.directory, before.server, "django_installed").shell(MIGRATE)
        yield "django_installed"


@pytest.fixture
def app(before: Project, installed: str) -> Iterator[Project]:
    """The application of the guide, with us installed."""
    with janitor(before.server, "django", template=installed):
        yield Project(before.directory, before.server, "django")


@pytest.fixture
def db(app: Project) -> Iterator[Connection[Any]]:
    with psycopg.connect(app.address, autocommit=True) as db:
        yield db


@pytest.mark.parametrize("first", ["Django", "pyscore"])
def test_the_two_migrations_come_in_either_order(project: Project, first: str) -> None:
    if first == "pyscore":
        migrator.upgrade(project.address)
    assert project.shell(MIGRATE + CHECK) == "No changes detected\n"
    migrator.upgrade(project.address)
    with psycopg.connect(project.address, autocommit=True) as db:
        column = (
            "select data_type, column_default, is_nullable from information_schema.columns"
            " where table_name = 'users' and column_name = 'builder_score'"
        )
        assert run(db, column) == [("integer", "0", "YES")]
        indexes = "select indexname from pg_indexes where indexdef like '%(builder_score%'"
        assert run(db, indexes) == [("idx_users_builder_score",)]
        # its own, where that was first
        additions = "select kind from builder_score.host_additions where table_name = 'users'"
        ours = [("column",), ("index",)] if first == "pyscore" else []
        assert sorted(run(db, additions)) == ours


PEOPLE = """
    insert into users (username, builder_score)
    values ('new', null), ('ada', 10), ('xia', 50), ('yan', 50), ('zoe', 60);
    insert into builder_score.score_state (user_id, score, computed_at)
    select id, builder_score, now() from users;
    delete from builder_score.score_recalc_queue;
"""


def test_pages_and_the_reader(app: Project, db: Connection[Any]) -> None:
    run(db, PEOPLE)
    last_page = "[user.username for user in ranking.filter(behind)[2:]]  # []\n"
    print_query = "print(ranking.filter(behind)[:2].query)\n"
    query = app.shell(IN_A_SHELL + last_page + print_query)
    run(
        db,
        "insert into users (username, builder_score)"
        " select n, n % 60 from generate_series(1, 9999) as n",
    )
    plan = "\n".join(line for (line,) in run(db, f"explain {query}"))
    assert "Index Scan using idx_users_builder_score on users" in plan
    assert re.search(r"Index Cond: .*ROW\(builder_score, id\) < ROW\(50, ", plan), plan
    assert "Sort" not in plan


SAVING = """
import django
from django.db import connection, models
from people.models import User


class Plain(models.Model):
    username = models.TextField()
    bio = models.TextField(null=True)
    builder_score = models.IntegerField(null=True)

    class Meta:
        app_label = "people"
        db_table = "users"
        managed = False


def recomputed():
    with connection.cursor() as cursor:
        cursor.execute("delete from builder_score.score_recalc_queue returning reason")
        return [reason for (reason,) in cursor]


def stored():
    return User.objects.values_list("builder_score", flat=True).get(username="ada")


stale = {model: model.objects.get(username="ada") for model in (Plain, User)}
User.objects.filter(username="ada").update(builder_score=44)
recomputed()  # ['score overwritten']
stale[User].save()
stored()  # 44
stale[User].builder_score == (44 if django.VERSION >= (6,) else 10)  # True
recomputed()  # []
stale[User].bio = "ships"
stale[User].save()
(stored(), recomputed())  # (44, ['profile changed'])
stale[User].refresh_from_db()
stale[User].builder_score  # 44
User.objects.bulk_update([User(id=stale[User].id, bio="x")], ["bio"])  # 1
User.objects.update_or_create(username="ada", defaults={"bio": "y"})[1]  # False
(stored(), {*recomputed()})  # (44, {'profile changed'})
# what the guide warns of
stale[Plain].save()
(stored(), recomputed())  # (10, ['score overwritten', 'profile changed'])

# new ones, whatever is said of their score
bo = User.objects.create(username="bo", builder_score=99)
bo.builder_score  # 0
# with an id of its own an UPDATE is tried first
cy = User(username="cy", id=1000)
cy.save()
cy.builder_score  # 0
User.objects.bulk_create([User(username="dan", builder_score=98)])[0].username  # 'dan'
told = {"update_conflicts": True, "update_fields": ["bio"], "unique_fields": ["username"]}
len(User.objects.bulk_create([User(username="xia", bio="z")], **told))  # 1
User.objects.filter(builder_score__gt=50).values_list("username", flat=True)  # <QuerySet ['zoe']>
User.objects.get(username="xia").builder_score  # 50

User.objects.get(username="zoe").full_clean(exclude=["bio"])
"""


def test_saving_leaves_the_score_alone(app: Project, db: Connection[Any]) -> None:
    run(db, PEOPLE)
    app.shell(SAVING)


def test_a_score_that_is_computed_while_django_saves_stays(
    app: Project, db: Connection[Any]
) -> None:
    run(db, PEOPLE)
    saving = """
from django.db import connection
from django.test.utils import CaptureQueriesContext
from people.models import User
with CaptureQueriesContext(connection) as queries:
    User.objects.get(username="ada").save()
print(queries[-1]["sql"])
"""
    save = app.shell(saving)
    assert save.startswith("UPDATE ")
    with Sessions(app.address) as sessions:
        worker, django = sessions("worker"), sessions("django")
        worker.run("begin")
        worker.run("update users set builder_score = 11 where username = 'ada'")
        django.start(save)
        django.waits_for(worker)
        worker.run("commit")
        django.finish()
    assert one(db, "select builder_score from users where username = 'ada'") == 11


def test_a_migration_of_a_column_we_read(app: Project, db: Connection[Any]) -> None:
    run(db, PEOPLE)
    changed = MODELS.replace(
        "bio = models.TextField(null=True)", "bio = models.CharField(max_length=500, null=True)"
    )
    alone = re.sub(r"        migrations.RunSQL\(.*\n", "", FILES[BIO])
    assert alone != FILES[BIO] != changed != MODELS
    try:
        app.write("people/models.py", changed)
        app.write(BIO, alone)
        refused = app.python("-c", START, stdin=MIGRATE)
        assert "cannot alter type of a column used by a view or rule" in refused.stderr
        app.write(BIO, FILES[BIO])
        there_and_back = MIGRATE + MIGRATE.replace("'migrate'", "'migrate', 'people', '0002'")
        assert app.shell(MIGRATE + CHECK + there_and_back) == "No changes detected\n"
        assert one(db, "select attached from builder_score.health")
        asked_for = run(db, "select user_id, reason from builder_score.score_recalc_queue")
        assert set(asked_for) == {(None, "attach")}, "everybody"
        # and where we are not
        migrator.downgrade(app.address)
        app.shell(there_and_back)
    finally:
        app.write("people/models.py", MODELS)
        (app.directory / BIO).unlink()


IN_TRANSACTIONS = """
import pytest
from people.models import Project, User


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("time", [1, 2])
def test_where_a_test_commits_and_django_flushes(drain_scores, time):
    ada = User.objects.create(username="ada")
    Project.objects.create(owner=ada, status="shipped")
    drain_scores()
    ada.refresh_from_db()
    assert ada.builder_score == 10
    assert User.objects.count() == 1
"""


def test_scores_in_djangos_own_tests(app: Project) -> None:
    app.write("conftest.py", FILES["conftest.py"])
    app.write("people/tests.py", FILES["people/tests.py"])
    app.write("people/test_transactions.py", IN_TRANSACTIONS)
    app.write("pytest.ini", "[pytest]\npython_files = test*.py\n")
    done = app.python("-m", "pytest", "-p", "no:cacheprovider", "-W", "error")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
