"""Reading a ranking page by page: nobody is skipped, nobody twice, and always by the index."""

import base64
import math
import struct
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import Connection
from sqlalchemy import text

from pyscore import BadArgumentError, Page, ScoreReader
from pyscore.cluster import PrivateCluster
from pyscore.reading import binds, conditions, cursors, host, queries
from pyscore.reading.types import IdType, ScoreType
from tests.conftest import janitor
from tests.reading import create_users, ids
from tests.statements import run

# Few values, so that most rows tie; and neighbours that differ in the last bit.
SCORES: dict[str, list[Any]] = {
    "integer": [None, 0, 1, 2, 100],
    "smallint": [None, -(2**15), 7, 2**15 - 1],
    "bigint": [None, -(2**63), 0, 2**63 - 1],
    "double precision": [None, 0.1, 0.3, 0.1 + 0.2, 1e-300, 5e-324, math.inf, -math.inf],
    "real": [None, 42.3, 42.29999923706055, 42.30000305175781, 1e-45, 3.4028235e38, 0.1],
    "numeric": [
        *(None, "0.1", "0.10", "0.1000000000000000000000001", "0.00000001", "42", "NaN"),
        "1" + "0" * 100,
    ],
}
KEYS: dict[str, list[str]] = {
    "bigint": [str(n) for n in (-(2**63), -1, 0, *range(1, 25), 2**63 - 1)],
    "uuid": [f"00000000-0000-4000-8000-{n:012x}" for n in range(25)],
    "text": ["", " ", "ab cd", "Ä", "ä", "z", "~", "%(x)s", ":x", "'", "\\", "\n", *"abcdefgh"],
    "varchar(26)": [f"01ARZ3NDEKTSV4RRFFQ69G5F{n:02}" for n in range(25)],
    'text collate "und-x-icu"': ["a", "A", "b", "B", "ä", "Ä", "z", "Z", "é", "e", "E"],
}


def people(key: str, score: str) -> st.SearchStrategy[list[tuple[str, Any, bool]]]:
    """Id, score, and whether they are banned."""
    each = st.tuples(st.sampled_from(KEYS[key]), st.sampled_from(SCORES[score]), st.booleans())
    return st.lists(each, unique_by=lambda row: row[0], max_size=25)


@pytest.fixture
def db(bare: Connection[Any]) -> Connection[Any]:
    """Without us: reading needs nothing of ours."""
    return bare


def walk(reader: ScoreReader, limit: int, **more: Any) -> list[Page]:
    """All pages, and proof that only the last one ends."""
    pages = [reader.leaderboard(limit, **more)]
    while pages[-1].next is not None:
        assert len(pages[-1]) == limit
        assert len(pages) <= 30, "it goes round in circles"
        pages.append(reader.leaderboard(limit, after=pages[-1].next, **more))
    return pages


@pytest.mark.parametrize(
    ("key", "score"),
    [(key, "integer") for key in KEYS] + [("bigint", score) for score in SCORES],
)
def test_pages_together_are_the_plain_query(db: Connection[Any], key: str, score: str) -> None:
    """Whatever the types, and whether or not the index is there."""
    create_users(db, key=key, score=score, more="banned boolean")
    reader = ScoreReader(db)
    conditions = {"": None, "where not banned": text("not banned"), "where false": text("false")}

    @settings(max_examples=25, deadline=None)
    @given(
        rows=people(key, score),
        limit=st.integers(1, 7),
        hidden=st.sampled_from(list(conditions)),
        threshold=st.sampled_from([None, *(s for s in SCORES[score] if isinstance(s, int))]),
        digits=st.integers(-15, 3),
        indexed=st.sampled_from(["on", "off"]),
    )
    def check(
        rows: list[tuple[str, Any, bool]],
        limit: int,
        hidden: str,
        threshold: int | None,
        digits: int,
        indexed: str,
    ) -> None:
        db.execute("delete from users")
        # the server may print floats with fewer digits than they have
        run(db, f"set extra_float_digits = {digits}; set enable_indexscan = {indexed}")
        with db.cursor() as cursor:
            cursor.executemany("insert into users values (%s, null, %s, %s)", rows)
        everybody = [
            row[0]
            for row in run(
                db,
                "select id from (select * from users where builder_score is not null) as u"
                f" {hidden} order by builder_score desc, id desc",
            )
        ]
        pages = walk(reader, limit, where=conditions[hidden])
        assert [user_id for page in pages for user_id in ids(page)] == everybody
        if threshold is not None:
            after, found = None, list[Any]()
            while True:
                page = reader.above(threshold, limit, after=after, where=conditions[hidden])
                found += ids(page)
                assert len(found) <= len(rows)
                if (after := page.next) is None:
                    break
            above = run(db, f"select id from users where builder_score > {threshold}::numeric")
            assert found == [user_id for user_id in everybody if (user_id,) in above]

    check()


def test_a_cursor_outlives_the_rows_it_was_made_of(db: Connection[Any]) -> None:
    create_users(db, [(n, f"user{n}", 50) for n in range(1, 31)])
    reader = ScoreReader(db)
    seen: list[int] = []
    page = reader.leaderboard(7)
    while True:
        seen += ids(page)
        assert len(seen) <= 30
        db.execute("delete from users where id = any(%s)", [ids(page)])
        if page.next is None:
            break
        page = reader.leaderboard(7, after=page.next)
    assert seen == list(range(30, 0, -1))


# Plans


@pytest.fixture(scope="module")
def crowd(server: PrivateCluster) -> Iterator[Connection[Any]]:
    """Thousands of people who share a few scores."""
    with (
        janitor(server, "reader_plans") as address,
        psycopg.connect(address, autocommit=True) as connection,
    ):
        create_users(connection, key="uuid", more="banned boolean")
        run(
            connection,
            """
            insert into users
            select md5(n::text)::uuid, 'user' || n, nullif(n % 11, 0), n % 100 = 0
            from generate_series(1, 8000) as n;
            analyze users;
            """,
        )
        yield connection


@pytest.mark.parametrize("generic", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("place", ["first", "middle"])
@pytest.mark.parametrize("above", [None, "7"])
@pytest.mark.parametrize("hidden", [None, text("not banned")])
def test_every_page_is_read_from_the_index(
    crowd: Connection[Any], generic: str, place: str, above: str | None, hidden: Any
) -> None:
    reader = ScoreReader(crowd)
    page = reader.leaderboard(1000) if above is None else reader.above(7, 1000)
    assert page.next
    found = host.relation_from(crowd.execute(*sent(host.relation(None, "users"))).fetchall())
    users = host.users_from(found, None, "users")
    position = cursors.decode(page.next, users.id_type, users.score_type)
    statement = queries.ranking(
        users,
        queries.users_table(users),
        limit=21,
        after=position if place == "middle" else None,
        above=above,
        where=None if hidden is None else conditions.mentions(hidden).clause,
    )
    query, values = sent(statement)
    run(crowd, f"set plan_cache_mode = {generic}")
    with psycopg.Cursor(crowd) as cursor:
        explained = b"explain (format json, analyze) " + query
        cursor.execute(explained, values, prepare=True)
        ((plan,),) = cursor.fetchall()
    scan = plan[0]["Plan"]
    while scan.get("Plans"):
        assert scan["Node Type"] in ("Limit", "Result"), plan
        (scan,) = scan["Plans"]
    assert scan["Node Type"] == "Index Scan", plan
    assert "builder_score" in scan["Index Cond"]
    assert scan["Actual Rows"] == 21
    # it starts at its place: nothing before it is read
    assert scan.get("Rows Removed by Filter", 0) <= 5, plan


def sent(statement: binds.Statement) -> tuple[bytes, dict[str, Any]]:
    query, values = binds.compiled(statement)
    return query.encode(), values


# Cursors

PLACE = cursors.Position("42", "17")
BIGINT, INTEGER = IdType("bigint", "N"), ScoreType("integer")
GOOD = cursors.encode(PLACE, BIGINT)


def coded(plain: str | bytes) -> str:
    plain = plain.encode() if isinstance(plain, str) else plain
    return base64.urlsafe_b64encode(plain).decode().rstrip("=")


def test_a_cursor_survives_a_url() -> None:
    assert cursors.decode(GOOD, BIGINT, INTEGER) == PLACE
    for n in range(50):
        tricky = cursors.encode(cursors.Position("1", "~ÿ?/+ " * n), IdType("text", "S"))
        assert set(tricky) <= set(
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        )
        assert cursors.decode(tricky, IdType("text", "S"), INTEGER).user_id == "~ÿ?/+ " * n


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        ("", "cut or changed"),
        ("!", "cut or changed"),
        ("Ä", "cut or changed"),
        (GOOD[:-5], "cut or changed|not the id"),
        (GOOD + "\n", "cut or changed"),
        (GOOD + "==", "cut or changed"),
        (GOOD + "AAAA", "not the id"),
        (coded(b"\xff\xfe 1 2 3"), "cut or changed"),
        (coded("[" * 7000), "cut or changed"),
        ("A" * 10_001, "longer than 10000"),
        (coded("2-score-id-desc integer 42 17"), "another order"),
        (coded("1-score-id-asc integer 42 17"), "another order"),
        (coded("1-score-id-desc uuid 42 17"), "ids of type uuid, and users.id has type bigint"),
        (coded("1-score-id-desc integer 42.5 17"), "its score is not one that integer holds"),
        (coded("1-score-id-desc integer 9999999999 17"), "its score"),
        (coded("1-score-id-desc integer NULL 17"), "its score"),
        (coded("1-score-id-desc integer 42 9223372036854775808"), "its id"),
        (coded("1-score-id-desc integer 42 1 7"), "its id"),
        (coded("1-score-id-desc integer 42 "), "its id"),
        (coded("1-score-id-desc integer 42"), "cut or changed"),
        (b"MQ", "expected text, not bytes"),
    ],
)
def test_what_is_no_cursor_is_refused(cursor: str, reason: str) -> None:
    with pytest.raises(BadArgumentError, match=f"not a cursor of this ranking: .*({reason})"):
        cursors.decode(cursor, BIGINT, INTEGER)


@given(
    st.one_of(
        st.text(max_size=80),
        st.binary(max_size=80).map(coded),
        st.text(max_size=40).map(lambda rest: coded("1-score-id-desc integer " + rest)),
    )
)
def test_no_text_makes_the_decoder_fail_otherwise(cursor: str) -> None:
    try:
        place = cursors.decode(cursor, BIGINT, INTEGER)
    except BadArgumentError:
        return
    assert -(2**31) <= int(place.score) < 2**31
    assert -(2**63) <= int(place.user_id) < 2**63


TAMPERED_SCORES = [
    *("1e300", "-1e300", "1e400", "1e-400", "1e-46", "nan", "inf", "-0.0", "1_0", "0x1p3", "٣"),
    *("1" * 300, "9" * 5000, "1e999999", "", "NaN", "Infinity", "1.", ".5", "'", "3.4028236e38"),
    *("1.7976931348623157e308", "1.7976931348623159e308", "2e308", "3.40282357e38"),
]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("key", ["bigint", "uuid", "text", "varchar(26)"])
def test_no_cursor_is_an_error_of_the_servers(db: Connection[Any], key: str, score: str) -> None:
    """Made by hand, well formed or not: it is refused here, or the server understands it."""
    create_users(db, key=key, score=score)
    family = {"bigint": "integer", "uuid": "uuid"}.get(key, "text")
    some_id = KEYS[key][0]
    reader = ScoreReader(db)
    with db.transaction():
        for forged in TAMPERED_SCORES:
            cursor = coded(f"1-score-id-desc {family} {forged} {some_id}")
            try:
                assert reader.leaderboard(5, after=cursor) == Page((), None)
            except BadArgumentError:
                continue
        for forged in ("x" * 5000, "\0", "1e5", "0x10", "00000000-0000-0000-0000-00000000000_"):
            cursor = coded(f"1-score-id-desc {family} 1 {forged}")
            try:
                assert reader.leaderboard(5, after=cursor) == Page((), None)
            except BadArgumentError:
                continue


def test_a_cursor_of_another_host_is_refused(db: Connection[Any]) -> None:
    create_users(db, [(n, "x", 1) for n in range(3)])
    create_users(db, [("a", "x", 1), ("b", "x", 1)], schema="other", key="text")
    by_number = ScoreReader(db).leaderboard(1).next
    by_text = ScoreReader(db, schema="other").leaderboard(1).next
    assert by_number
    assert by_text
    with pytest.raises(BadArgumentError, match=r"of type text, and users\.id has type bigint"):
        ScoreReader(db).above(0, after=by_text)
    with pytest.raises(BadArgumentError, match=r"of type integer, and users\.id has type text"):
        ScoreReader(db, schema="other").leaderboard(after=by_number)
    db.execute("drop schema other cascade")


def test_real_scores_are_handled_as_what_they_are() -> None:
    real = ScoreType("real")
    for bits in (b"\x00\x00\x00\x01", b"\x42\x29\x33\x33", b"\x7f\x7f\xff\xff"):
        (value,) = struct.unpack(">f", bits)
        assert real.checked(real.exact_text(struct.pack(">d", value))) == repr(value)
