"""`python -m edge_lmm` is `edge-lmm`."""

import sys

from ._commands import runtime

sys.exit(runtime())
