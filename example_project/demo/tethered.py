"""Runs a command that ends with its parent process: ``tethered.py PARENT_PID COMMAND...``.

A parent killed by SIGKILL cannot stop its children; on Linux, the kernel then does. Run this file
by its path: it starts in a few hundredths of a second.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def tether(parent_pid: int) -> None:
    """Send this process SIGTERM when its parent ends; only on Linux. ``exec`` keeps this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        raise SystemExit("The process that started this one has ended already.")


if __name__ == "__main__":
    tether(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
