"""Reinforcement learning for very high-dimensional bodies, simulator and learner on one device."""

import signal
import sys

__version__ = "0.1.0"

# Until a command of ours listens (`interrupt.py`), Ctrl-C ends it without a traceback.
if sys.argv[:1] == ["-m"] and any(one.startswith(f"{__name__}.") for one in sys.orig_argv):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
