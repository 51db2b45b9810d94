"""``python -m fastpe``: the commands of ``fastpe._tools.cli``."""

import sys

from ._tools.cli import main

sys.exit(main())
