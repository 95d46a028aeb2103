"""`python -m bruno.engine`: how a run is started on a rented machine, detached, with its output going to a log."""

import sys

from bruno.engine.command import main

sys.exit(main(sys.argv[1:]))
