"""Ctrl-C in the processes that tests start."""

from __future__ import annotations

import signal


def restore_interrupts() -> None:
    """Let this process and those that it starts end by SIGINT.

    A shell that starts the tests in the background, as ``bash tests/run.sh &`` in a script, lets
    all of them ignore it; tests that interrupt a program would wait for it for ever.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
