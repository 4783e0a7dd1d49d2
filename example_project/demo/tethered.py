"""Runs a command that ends when its parent does: ``tethered.py PARENT_PID COMMAND...``.

A parent that is killed (SIGKILL) cannot stop its children; on Linux the kernel does it then.
Run by its path, so that it starts in a few hundredths of a second.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def tether(parent_pid: int) -> None:
    """Let this process get SIGTERM when the parent ends. Survives ``exec``; does only Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        raise SystemExit("The process that started this one has ended already.")


if __name__ == "__main__":
    tether(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
