"""Builders: people, what they build together, and their scores. README.md says where to begin."""
