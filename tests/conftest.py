"""For every test: signals as a terminal gives them.

A suite started in the background (`make test &`, nohup, some CI runners) inherits ignored signals and hands them on to what it
starts; tests of Ctrl-C and of a closed terminal would then test nothing.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
