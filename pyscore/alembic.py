"""Keeps an application's own Alembic from seeing what pyscore put into the database.

Without these, ``alembic check`` fails once pyscore is installed, and the next ``alembic revision
--autogenerate`` writes a migration that drops the score. In the application's ``env.py``:

    from pyscore.alembic import include_name, include_object

    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_schemas=True,  # or not
        include_name=include_name,
        include_object=include_object,
    )

An application with filters of its own calls these from them:

    from pyscore import alembic as score

    def include_name(name, type_, parent_names):
        return score.include_name(name, type_, parent_names) and name != "legacy"

    def include_object(object, name, type_, reflected, compare_to):
        if not score.include_object(object, name, type_, reflected, compare_to):
            return False
        return not object.info.get("skip_autogenerate", False)

Both are needed: the first saves reading whole schemas, the second knows the column and the indexes.
What they leave out:

- the schemas ``builder_score`` and ``cron`` (pg_cron's), with all that is in them;
- the column ``builder_score`` of ``users`` and of its partitions, unless the model declares one and
  the database's was not added by pyscore: then the two are compared like any other column;
- the indexes that pyscore makes where none serves, as long as no model declares them. They are
  known by their names and tables: an index of such a name is one that the score needs, whoever made
  it, and it is not proposed for removal;
- what `pyscore.models.BuilderScoreMixin` declares, before pyscore is installed as after it;
- the reference tables, where pyscore made them and no model declares them. A model that does takes
  them over: they are compared from then on.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.schema import SchemaItem

from pyscore import models

__all__ = ["include_name", "include_object"]

SCHEMAS = frozenset({"builder_score", "cron"})

INDEXES = {
    models.INDEX: "users",
    "idx_projects_owner_id": "projects",
    "idx_project_collaborators_project_id": "project_collaborators",
    "idx_project_collaborators_user_id": "project_collaborators",
}
"""The indexes that pyscore may make, and the table of each (builder_score.needed_indexes())."""

_REFERENCE_TABLES = ("users", "projects", "project_collaborators")
_REFERENCE_TABLE_COMMENT = "(builder_score's reference table)."


def include_name(name: str | None, type_: str, parent_names: Mapping[Any, str | None]) -> bool:
    """Tell Alembic whether to look at a name in the database; its argument ``include_name``.

    Args:
        name: The object's name; None for the default schema.
        type_: ``"schema"``, ``"table"``, ``"column"``, ``"index"``, ``"unique_constraint"`` or
            ``"foreign_key_constraint"``.
        parent_names: The schema and table that it is in, where it is in one.

    Returns:
        False for pyscore's and pg_cron's schemas and what is in them, else True.
    """
    schema = name if type_ == "schema" else parent_names.get("schema_name")
    return schema not in SCHEMAS


def include_object(
    object: SchemaItem,
    name: str | None,
    type_: str,
    reflected: bool,
    compare_to: SchemaItem | None,
) -> bool:
    """Tell Alembic whether to compare an object; its argument ``include_object``.

    Args:
        object: The table, column, index or constraint: the model's, or the database's where
            ``reflected``.
        name: Its name.
        type_: ``"table"``, ``"column"``, ``"index"``, ``"unique_constraint"`` or
            ``"foreign_key_constraint"``.
        reflected: Whether ``object`` is the database's.
        compare_to: The database's counterpart of a model's object, if there is one.

    Returns:
        False for what pyscore keeps, else True.
    """
    table: Any = object if type_ == "table" else getattr(object, "table", None)
    if table is None:
        return True
    if table.schema in SCHEMAS or models.INFO_KEY in object.info:
        return False
    only_in_database = reflected and compare_to is None
    if type_ == "column" and name == models.COLUMN:
        return not only_in_database and getattr(compare_to, "comment", None) != models.COMMENT
    if type_ == "index":
        return not (only_in_database and _is_our_index(name or "", table.name))
    if type_ == "table":
        return not (only_in_database and _is_our_reference_table(table.name, table.comment))
    return True


def _is_our_index(name: str, table: str) -> bool:
    # on a partition something follows the name, and the table may be called anything
    return INDEXES.get(name) == table or any(
        name.startswith(f"{index}_") and table != parent for index, parent in INDEXES.items()
    )


def _is_our_reference_table(name: str, comment: str | None) -> bool:
    return name in _REFERENCE_TABLES and (comment or "").endswith(_REFERENCE_TABLE_COMMENT)
