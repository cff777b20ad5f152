"""``python -m agent`` is ``talus``."""

import sys

from agent.cli import main

sys.exit(main())
