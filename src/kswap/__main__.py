"""`python -m kswap`, also for `accelerate launch -m kswap`."""

import sys

from kswap.cli import main

sys.exit(main())
