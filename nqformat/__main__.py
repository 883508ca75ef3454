"""``python -m nqformat`` is the command ``nqz``."""

import sys
from importlib import import_module

if __name__ == "__main__":
    sys.exit(import_module("nqconvert.cli").main())
