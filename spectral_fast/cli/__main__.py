"""``python -m spectral_fast.cli``."""

import sys

from .commands import main

sys.exit(main())
