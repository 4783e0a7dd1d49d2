"""System checks, by subject. See docs/checks.rst; ids are never reused.

No check uses the network. Only those tagged ``database`` use the database.
"""
