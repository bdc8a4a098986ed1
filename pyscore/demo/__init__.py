"""The demo: a private server, real data, and the real pg_cron job (``make demo``).

Each act is a module with one function ``play``; the stage it plays on, how it waits and how it
prints are apart from it.
"""
