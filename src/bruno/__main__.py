"""`python -m bruno` is `bruno`."""

import sys

from bruno.cli import main

sys.exit(main())
