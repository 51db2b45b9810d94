"""``python -m fastpe``: see ``fastpe.cli``."""

import sys

from .cli import main

sys.exit(main())
