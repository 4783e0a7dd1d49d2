"""System checks, by their subjects. An id is never given to a second fault: docs/checks.rst.

None asks the network, and only those of ``database`` ask the database.
"""
