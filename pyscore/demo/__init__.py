"""The demo, ``pyscore demo``: a private server, two acts, and the real worker.

Each act is a module with one function ``play``; the server it plays on, what runs the worker there,
how it waits and how it prints are apart from it.
"""
