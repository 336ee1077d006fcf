"""``python -m splitlab`` is the command line."""

import sys

from splitlab.core.command.main import main

sys.exit(main())
