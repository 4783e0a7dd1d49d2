"""An app whose ``flush`` command empties the tables faster than Django's, after each test."""
