"""What holds for all tests."""

from __future__ import annotations

import signal

# What a script starts in the background ignores SIGINT, and everything started from there does too: tests that send it
# would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
