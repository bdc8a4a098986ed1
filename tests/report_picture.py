"""The picture of the page in the README: ``python -m tests.report_picture`` makes it anew.

On a private server, of people who do not exist, always the same ones.
"""

import tempfile
from pathlib import Path
from typing import Any, Literal

import psycopg
from playwright.sync_api import Browser
from psycopg import Connection

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from pyscore.demo.builders import BUILDERS, load
from tests.browser import chromium
from tests.commands import ROOT, call, output
from tests.community import drain

PICTURE = ROOT / "docs" / "report.png"

_CROWD = """
with people as (
    insert into users (username, email, bio, headline, timezone, created_at)
    select 'user' || n, 'user' || n || '@example.org',
           case when n % 3 > 0 then 'x' end, case when n % 2 > 0 then 'x' end,
           case when n % 5 > 0 then 'x' end, now() - make_interval(days => n * n % 1009)
    from generate_series(1, 900) as n
    returning id, substr(username, 5)::integer as n
)
insert into projects (owner_id, title, status, github_stars)
select p.id, 'a project', case when (p.n + k) % 3 > 0 then 'shipped' else 'in_progress' end,
       (p.n * k * 7919) % (1 + (p.n * k) % 4001)
from people as p
cross join generate_series(1, 7) as k
where (p.n * 31 + k * 17) % 101 < p.n * 13 % 61
"""

_TOGETHER = """
insert into project_collaborators (project_id, user_id, status)
select p.id, u.id, 'confirmed'
from (select p.*, row_number() over (order by u.username, p.github_stars, p.id) as n
      from projects as p join users as u on u.id = p.owner_id where u.username like 'user%') as p
cross join generate_series(1, 3) as k
join users as u on u.username = 'user' || 1 + (p.n * 37 + k * 211) % 900
where k <= p.n * 7 % 5 - 1 and u.id <> p.owner_id
on conflict do nothing
"""

_BOTH = """<!DOCTYPE html><meta charset="utf-8"><style>
body { margin: 0; padding: 28px; display: flex; gap: 28px; background: #ccd3de; }
img { border-radius: 12px; height: 740px; }
</style><img src="wide.png"><img src="phone.png">
"""


def people(db: Connection[Any]) -> None:
    """Write people whose scores are spread as a community's are."""
    load(db, BUILDERS)
    db.execute(_CROWD)
    db.execute(_TOGETHER)
    drain(db)


def take(browser: Browser, page: Path, scratch: Path) -> bytes:
    """Photograph the page, wide in the light and on a phone in the dark."""
    _shoot(browser, page.as_uri(), scratch / "wide.png", 1100, 1060, "light")
    # further down the page, as much as one screen holds
    _shoot(browser, f"{page.as_uri()}#spread-title", scratch / "phone.png", 390, 1060, "dark")
    both = scratch / "both.html"
    both.write_text(_BOTH, encoding="utf-8")
    return _shoot(browser, both.as_uri(), scratch / "both.png", 1124, 796, "light")


def _shoot(
    browser: Browser,
    address: str,
    file: Path,
    width: int,
    height: int,
    scheme: Literal["light", "dark"],
) -> bytes:
    tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    tab.goto(address)
    taken = tab.screenshot(path=file)
    tab.close()
    return taken


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        PrivateCluster(settings={"fsync": False}) as server,
        chromium() as browser,
    ):
        page = Path(directory) / "page.html"
        migrator.upgrade(server.conninfo())
        with psycopg.connect(server.conninfo(), autocommit=True) as db:
            people(db)
        output(call("report", "-o", str(page), "--dsn", server.conninfo()))
        PICTURE.write_bytes(take(browser, page, Path(directory)))


if __name__ == "__main__":
    main()
