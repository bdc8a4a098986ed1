"""What a column can hold, as text, by its type: mostly what no application means to write."""

import json
from random import Random

TEXTS = (
    *("", " ", "\t\n\v\f\r", "\u00a0\u2003\u3000", "\u200b", "\ufeff", "\x01\x02\x1b[2J\x7f"),
    *("shipped", "SHIPPED", " shipped", "shipped ", "confirmed", "Confirmed", "in_progress"),
    *("12", "0012", "12.5", "-5", "1.2k", "1e5", "NaN", "Infinity", "9" * 30, "\u0661\u0662"),
    *("{}", "[]", "null", '{"users": 7}', '{"users": "12"}', '{"users": NaN}', "{users: 7}", '"x"'),
    *("\U0001f680", "e\u0301", "\u202eevil", "a" * 300, "'; drop table users; --", "\\x00", "%s"),
)
NUMBERS = (
    *("0", "-0", "1", "-1", "12.5", "-12.5", "1e3", "0.1", "1e-20", "1e-400", "1e-16000"),
    *("32767", "-32768", "2147483647", "-2147483648", str(2**63 - 1), str(-(2**63))),
    *("1e30", "1e308", "-1e308", "1e400", "-1e400", "9" * 400, "1e131071", "9" * 20_000),
)
NOT_NUMBERS = ("NaN", "Infinity", "-Infinity")
FLOATS = (*NOT_NUMBERS, "1.7e308", "-1.7e308", "5e-324", "3.4e38", "1e-45", "16777217")
MOMENTS = (
    *("infinity", "-infinity", "epoch", "now", "tomorrow", "yesterday", "0044-03-15 BC"),
    *("4713-01-01 BC", "0001-01-01", "1582-10-15", "9999-12-31", "10000-01-01", "2262-04-11"),
    *("2038-01-19 03:14:08", "2024-02-29 12:00", "294276-12-31", "294275-12-31 23:59:59.999999"),
)
DATES = (*MOMENTS, "5874897-12-31", "294276-01-02")
ARRAYS = ("{}", "{NULL}", '{""}', "{a,b}", '{"{}"}', '{"{\\"users\\": 9}"}', "{{a},{b}}", "{1}")
ROWS = ("(,)", "(1,)", "(1,{})", '(1,"[1, 2]")', "(-1,null)")
DEEP = 3000


def hostile_json(dice: Random, depth: int = 4) -> str:
    """JSON of any shape, as text, because Python has no number for 1e400."""
    kind = dice.randrange(12)
    if depth == 0 or kind < 4:
        return dice.choice([dice.choice(NUMBERS), "true", "false", "null", "{}", "[]"])
    if kind < 6:
        return json.dumps(dice.choice(TEXTS))
    parts = [hostile_json(dice, depth - 1) for _ in range(dice.randrange(4))]
    if kind < 8:
        return f"[{', '.join(parts)}]"
    if kind < 11:
        keys = [dice.choice(["users", "Users", "", "stars", "\t", "x" * 200]) for _ in parts]
        pairs = zip(keys, parts, strict=True)
        return "{" + ", ".join(f"{json.dumps(key)}: {part}" for key, part in pairs) + "}"
    nested = "[" * DEEP + hostile_json(dice, 0) + "]" * DEEP
    return dice.choice([nested, f'{{"users": 9, "x": {nested}}}', f'{{"users": {nested}}}'])


def hostile_text(dice: Random) -> str:
    kind = dice.randrange(10)
    if kind < 6:
        return dice.choice(TEXTS)
    if kind < 8:
        characters = [chr(dice.choice([dice.randint(1, 0x2FF), dice.randint(0x2000, 0x3001)]))]
        return "".join(characters * dice.randrange(4)) + dice.choice(TEXTS)
    return hostile_json(dice)


def hostile_value(dice: Random, type_name: str) -> str | None:
    """Give a value of a type of PostgreSQL's, domains resolved; None is null.

    Not each of them is one that the type takes: applications try.
    """
    if dice.random() < 0.1:
        return None
    if type_name.endswith("[]"):
        return dice.choice(ARRAYS)
    if type_name in ("json", "jsonb"):
        return f'{{"users": {hostile_json(dice)}}}' if dice.random() < 0.5 else hostile_json(dice)
    if type_name in ("smallint", "integer", "bigint", "numeric"):
        return dice.choice(NUMBERS if type_name != "numeric" else NUMBERS + NOT_NUMBERS)
    if type_name in ("real", "double precision"):
        return dice.choice(NUMBERS + FLOATS)
    if type_name.startswith("timestamp"):
        return dice.choice(MOMENTS)
    if type_name == "date":
        return dice.choice(DATES)
    if type_name == "boolean":
        return dice.choice(["true", "false"])
    if type_name == "point":
        return dice.choice(["(0,0)", "(NaN,Infinity)"])
    if type_name.startswith("row"):
        return dice.choice(ROWS)
    return hostile_text(dice)
