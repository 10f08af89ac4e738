"""`python -m rnnzoo` is the command `rnnzoo`."""

import sys
from pathlib import Path

if sys.path[0] == str(Path.cwd()):  # Python's way with -m: a stranger's torch.py beside a run must not be torch
    sys.path.append(sys.path.pop(0))

from rnnzoo.cli import main

sys.exit(main())
