"""``python -m splitlab.core.command`` is the command line; a run starts its server this way."""

import sys

from splitlab.core.command.main import main

sys.exit(main())
