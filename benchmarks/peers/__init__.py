"""What a user would choose instead of us, each set up by package name with its ordinary settings.

They score users by the same formula, with its constants written into the code as an application
would have them, on the reference tables (sql/010_reference_tables.sql).
"""
