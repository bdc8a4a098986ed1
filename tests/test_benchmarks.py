"""The benchmarks: they work at the smallest scale, their arithmetic, and what quotes their results.

How fast anything is, is no concern of a test's.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import hosts, servers
from benchmarks.measuring import Ratio, alternate
from benchmarks.plots import OURS, Plot
from benchmarks.reports import RESULTS, Figure, Report, Table, number, read_figures, summarise
from benchmarks.scales import Scale
from benchmarks.usage import children, cpu_seconds, cpu_seconds_of_children
from pyscore.cluster import PrivateCluster
from tests.commands import ROOT, environment
from tests.community import one

QUOTING = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of them, run at the smallest scale one after the other, have left their pages."""
    directory = tmp_path_factory.mktemp("results")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--smoke", "--output", str(directory)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory


def figure(**changed: Any) -> Figure:
    return replace(Figure("it", "that", "≥ 0.90", 0.95, 0.9, 1.0), **changed)


# The benchmarks themselves


@pytest.mark.pg_cron
@pytest.mark.contrib
@pytest.mark.parametrize("name", command.benchmarks())
def test_each_works(name: str, results: Path) -> None:
    figures = read_figures(results / f"{name}.json")
    assert [figure for figure in figures if figure.reach], "nothing to reach"
    for found in figures:
        assert math.isfinite(found.got), found
        assert 0 <= found.low <= found.got <= found.high, found
    assert len({found.what + found.against for found in figures}) == len(figures)
    page = (results / f"{name}.md").read_text(encoding="utf-8")
    for place in (str(ROOT), str(results), str(Path.home()), "/tmp", "localhost"):
        assert place not in page
    for plot in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page):
        assert (results / plot).read_bytes().startswith(b"\x89PNG"), plot
    summary = (results / "summary.md").read_text(encoding="utf-8")
    for found in figures:
        assert summary.count(f"\n| {' | '.join(found.cells())} |\n") == bool(found.reach), found


@dataclass
class Fake:
    """A benchmark that only takes down that it was run."""

    NAME: str
    runs: list[str]
    TITLE: str = "Nothing"

    def run(self, scale: Scale) -> Report:
        self.runs.append(f"{self.NAME} {scale.value}")
        return report(self.NAME, figure(what=self.NAME))


def test_those_are_run_that_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs: list[str] = []
    known = {name: Fake(name, runs) for name in ("first", "second", "third")}
    monkeypatch.setattr(command, "benchmarks", lambda: known)
    options = ("--quick", "--output", str(tmp_path))
    for names in (("third", "first"), ()):
        assert CliRunner().invoke(command.main, [*options, *names]).exit_code == 0
    assert runs == [f"{name} quick" for name in ("first", "third", "first", "second", "third")]
    assert read_figures(tmp_path / "third.json") == [figure(what="third")]
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert summary.index("| first |") < summary.index("| second |") < summary.index("| third |")


def test_they_are_listed_and_no_other_is_run() -> None:
    listed = CliRunner().invoke(command.main, ["--list"])
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert names == list(command.benchmarks())
    assert names == [*command.MODULES], "their order"
    refused = CliRunner().invoke(command.main, ["--smoke", "nothing"])
    assert refused.exit_code == 2
    assert "no benchmark nothing" in refused.stderr


def test_each_is_in_the_page_about_them() -> None:
    page = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    assert [name for name in command.benchmarks() if f"| `{name}` |" not in page] == []


# The application's database


@pytest.mark.parametrize("key", ["uuid", "bigint"])
def test_an_applications_database_has_what_it_should(
    server: PrivateCluster, key: hosts.Key
) -> None:
    name, twin, people = f"bench_{key}", f"bench_{key}_twin", 2000
    try:
        hosts.fill(server, name, people, key=key)
        with servers.connect(server, name) as db:
            assert one(db, "select count(*) from users") == people
            projects = one(db, "select count(*) from projects")
            collaborations = one(db, "select count(*) from project_collaborators")
            assert 1.8 < projects / people < 2.2
            assert 1.3 < collaborations / people < 1.6
            for table, count in (
                *(("users", people), ("projects", projects)),
                *(("project_collaborators", collaborations),),
            ):
                kind = {"users": "person", "projects": "project"}.get(table, "collaboration")
                numbers = f"select {kind}_id(n) from generate_series(1, {count}) as n"
                assert one(db, f"select count(*) from {table} where id in ({numbers})") == count
            assert one(db, "select pg_typeof(id)::text from users limit 1") == key
            assert one(db, "select id = person_id(7) from users where username = 'person7'")
            most = "select max(n) from (select count(*) as n from projects group by owner_id) as o"
            assert one(db, most) == 40
        hosts.install(server, name)
        hosts.twin(server, name, twin)
        with servers.connect(server, name) as db, servers.connect(server, twin) as other:
            assert one(db, "select count(distinct builder_score) from users") > 20
            assert one(db, "select count(*) from users where builder_score is null") == 0
            assert one(db, "select count(*) from builder_score.score_recalc_queue") == 0
            assert one(db, "select count(*) from builder_score.verify()") == 0
            scores = (
                "select md5(string_agg(id || ' ' || builder_score, ',' order by id)) from users"
            )
            assert one(db, scores) == one(other, scores)
            # ids that come later are behind those that are there
            other.execute("insert into users (email, username) values ('new', 'new')")
    finally:
        server.psql("-c", f"drop database if exists {twin}", "-c", f"drop database {name}")


def test_a_server_says_what_is_not_a_default() -> None:
    with servers.server(Scale.SMOKE, autovacuum=False, work_mem="5MB") as cluster:
        said = servers.describe(cluster)
        directory = str(cluster.directory)
    assert re.match(r"PostgreSQL \d+\.\d+\. Settings that are not the defaults: `", said)
    assert "`autovacuum = off`" in said
    assert "`work_mem = 5MB`" in said
    assert "`checkpoint_timeout = 1h`" in said
    assert "max_wal_size" not in said, "1GB is the default"
    assert "TimeZone" not in said
    assert directory not in said
    assert not Path(directory).exists()


# Arithmetic


def test_rounds_alternate_and_the_first_is_thrown_away() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    values = alternate({name: lambda name=name: side(name) for name in "abc"}, 3)
    assert calls[3:] == [*"abc", *"bca", *"cab"]
    assert sorted(calls[:3]) == [*"abc"]
    assert values == {"a": [4, 9, 11], "b": [5, 7, 12], "c": [6, 8, 10]}


def test_a_ratio_is_taken_within_a_round() -> None:
    # the machine is ten times slower in the second round
    assert Ratio.of([90, 9, 80], [100, 10, 100]) == Ratio(0.9, 0.8, 0.9)
    assert Ratio.among([3, 1, 2]) == Ratio(2, 1, 3)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        Ratio.of([1, 2], [1])


def test_processor_time_is_a_processs_own() -> None:
    before = cpu_seconds(os.getpid()), cpu_seconds_of_children(os.getpid())
    child = subprocess.Popen(
        [sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"]
    )
    assert child.pid in children(os.getpid())
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    # user and system time, each told in whole ticks
    ticks = 2 / os.sysconf("SC_CLK_TCK")
    seconds = cpu_seconds_of_children(os.getpid()) - before[1]
    assert seconds == pytest.approx(used.ru_utime + used.ru_stime, abs=ticks)
    assert used.ru_utime + used.ru_stime >= 0.2
    assert child.pid not in children(os.getpid())
    while sum(os.times()[:2]) < before[0] + 0.1:
        pass
    assert cpu_seconds(os.getpid()) - before[0] >= 0.09


@pytest.mark.parametrize(
    ("reach", "got", "reached"),
    [
        ("≥ 0.90", 0.9, True),
        ("≥ 0.90", 0.8999, False),
        ("≤ 1.6", 1.6, True),
        ("≤ 1.6", 1.61, False),
        ("= 0", 0, True),
        ("= 0", 1, False),
        ("≤ 1,000", 999, True),
        ("", 5, None),
    ],
)
def test_a_figure_is_reached_or_not(reach: str, got: float, reached: bool | None) -> None:
    assert figure(reach=reach, got=got).reached is reached


def test_a_figure_is_in_the_unit_in_which_it_is_to_be_reached() -> None:
    assert figure(reach="≤ 40 ms", got=39, unit="ms").reached
    with pytest.raises(AssertionError, match="is not in"):
        _ = figure(reach="≤ 40 ms", got=0.039, unit="s").reached
    with pytest.raises(AssertionError, match="not of the form"):
        _ = figure(reach="about 3").reached


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((0, "0"), (3, "3"), (3.0, "3"), (1234567, "1,234,567"), (0.8951, "0.895")),
        *((1.5, "1.50"), (12.34, "12.3"), (123.4, "123"), (0.00123, "0.00123")),
        *((9.999, "10.00"), (0.99999, "1"), (99.97, "100.0")),
    ],
)
def test_a_number_has_three_digits_that_mean_something(value: float, shown: str) -> None:
    assert number(value) == shown


def test_sizes_are_picked_by_scale() -> None:
    sizes = {
        scale: scale.pick(smoke=1, quick=2, ordinary=3, full=4 if scale is Scale.FULL else None)
        for scale in Scale
    }
    assert list(sizes.values()) == [1, 2, 3, 4]
    assert Scale.FULL.pick(smoke=1, quick=2, ordinary=3) == 3


# Reports


def report(name: str, *figures: Figure, **parts: Any) -> Report:
    return Report(name, f"The {name}", figures, server="PostgreSQL 1.", **parts)


def test_a_report_is_a_page_and_data(tmp_path: Path) -> None:
    figures = [figure(), figure(what="x | y", reach="", unit="ms", note="a note")]
    plot = Plot("it.png", "It grows", lambda axes: axes.plot([1, 2], [1, 2], color=OURS))
    table = Table("More", ["", "rows"], [["a", 1000], ["b", 2.5]])
    made = report("first", *figures, tables=[table], remarks=["Some words."], plots=[plot])
    made.write(tmp_path / "results", Scale.QUICK)
    page = (tmp_path / "results/first.md").read_text(encoding="utf-8").splitlines()
    assert page[0] == "# The first"
    assert page[2] == f"`make bench ARGS='--quick first'`, on {os.cpu_count()} cores. PostgreSQL 1."
    assert "| it | that | ≥ 0.90 | 0.95 | 0.9 to 1 | reached |" in page
    assert "| x \\| y | that |  | 0.95 ms | 0.9 to 1 | a note |" in page
    assert page[page.index("## More") :][2:] == [
        *("|  | rows |", "|---|--:|", "| a | 1,000 |", "| b | 2.50 |"),
    ]
    assert "![It grows](it.png)" in page
    assert (tmp_path / "results/it.png").read_bytes().startswith(b"\x89PNG")
    assert read_figures(tmp_path / "results/first.json") == figures
    data = json.loads((tmp_path / "results/first.json").read_text(encoding="utf-8"))
    assert [each["reached"] for each in data["figures"]] == [True, None]


def test_the_summary_has_the_figures_of_all_reports(tmp_path: Path) -> None:
    report("second", figure(what="two"), figure(what="aside", reach="")).write(
        tmp_path, Scale.ORDINARY
    )
    report("first", figure(what="one", got=0.5)).write(tmp_path, Scale.ORDINARY)
    summarise(tmp_path, ["first", "never_run", "second"])
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[0] for line in summary.splitlines() if line.startswith("| ")] == [
        *("| what", "| one", "| two"),
    ]
    assert "**missed**" in summary
    assert "scale: ordinary" in summary
    assert "[first](first.md), [second](second.md)" in summary


# What is committed, and what quotes it


def tables(text: str) -> list[list[str]]:
    """The rows of each table of figures."""
    heading = r"\| what \| against \| reach \| got \| lowest to highest \| +\|\n\|[-|: ]+\n"
    return [found.splitlines() for found in re.findall(rf"{heading}((?:\|.*\n?)*)", text)]


def test_the_summary_is_that_of_the_results(tmp_path: Path) -> None:
    for name in command.MODULES:
        if (RESULTS / f"{name}.json").exists():
            shutil.copy(RESULTS / f"{name}.json", tmp_path)
    summarise(tmp_path, command.MODULES)
    summary = (RESULTS / "summary.md").read_text(encoding="utf-8")
    assert summary == (tmp_path / "summary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_figures_of_a_page_are_those_of_its_data(path: Path) -> None:
    assert path.stem in command.benchmarks()
    (rows,) = tables(path.with_suffix(".md").read_text(encoding="utf-8"))
    assert rows == ["| " + " | ".join(each.cells()) + " |" for each in read_figures(path)]


def test_figures_that_are_quoted_are_those_of_the_results() -> None:
    (figures,) = tables((RESULTS / "summary.md").read_text(encoding="utf-8"))
    quoted = {path.name: tables(path.read_text(encoding="utf-8")) for path in QUOTING}
    assert quoted["README.md"], "the README has no table of figures"
    for name, found in quoted.items():
        unknown = [row for rows in found for row in rows if row not in figures]
        assert unknown == [], f"{name} quotes what benchmarks/results/summary.md does not have"
