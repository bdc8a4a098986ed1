"""Applications that use pyscore.

A package, so that its folder ``fastapi`` does not hide the library of that name.
"""
