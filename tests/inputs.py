"""What people type into an application's fields, and what they should not: drawn by Hypothesis."""

from hypothesis import strategies as st

TEXTS = st.sampled_from([None, "", " ", "\t\n", " \t\n", "\u3000", "x", " x ", "\x01"])
LINKS = st.sampled_from(["{}", "[]", "null", '"x"', '["x"]', '{"web": "x"}', '{"": null}'])
PROJECT_STATUSES = st.sampled_from(["in_progress", "shipped", "shipped", "archived", "SHIPPED", ""])
COLLABORATION_STATUSES = st.sampled_from(
    ["confirmed", "confirmed", "confirmed", "pending", "declined"]
)
STARS = st.one_of(st.integers(-3, 50), st.just(2**31 - 1))
_COUNTS = st.one_of(
    st.integers(-5, 5000).map(str),
    st.sampled_from(["12.5", '"12"', '"12.5"', '" 12 "', '"1.2k"', '"1e5"', "true", "null"]),
    st.sampled_from(["[9]", '{"users": 9}', "1e-400", "1e400", '"' + "9" * 401 + '"']),
)
METRICS = st.one_of(
    st.sampled_from(["{}", "[]", "null", "9"]),
    st.dictionaries(st.sampled_from(["downloads", "users"]), _COUNTS, max_size=2).map(
        lambda metrics: (
            "{" + ", ".join(f'"{key}": {value}' for key, value in sorted(metrics.items())) + "}"
        )
    ),
)
AGES = st.one_of(st.integers(-2, 800), st.just(36_500))
"""Of accounts, in days."""
