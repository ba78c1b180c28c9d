"""``python -m modcut`` prints what ``modcut info`` prints; with arguments it is the ``modcut`` command."""

from __future__ import annotations

import sys

from modcut.cli import main

if __name__ == "__main__":
    main(sys.argv[1:] or ["info"])
