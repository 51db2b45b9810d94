"""``python -m fastpe``: see ``fastpe._tools.cli``."""

import sys

from ._tools.cli import main

sys.exit(main())
