"""A demo on one machine, without an account at Keap: ``python -m example_project.demo``."""

import os

if os.name != "posix":
    raise SystemExit("The demo needs Linux or macOS; on Windows, WSL.")
