"""What it costs the application: its own statements, with our triggers and without."""

from benchmarks import hosts, servers
from benchmarks.reports import Report
from benchmarks.scales import Scale

NAME = "application"
TITLE = "What the application pays"


def run(scale: Scale) -> Report:
    people = scale.pick(smoke=300, quick=20_000, ordinary=100_000)
    with servers.server(scale, autovacuum=False) as cluster:
        hosts.fill(cluster, "app", people)
        hosts.install(cluster, "app")
        hosts.twin(cluster, "app", "alone")
        return Report(NAME, TITLE, figures=[], server=servers.describe(cluster))
