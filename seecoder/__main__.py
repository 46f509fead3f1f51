"""`python -m seecoder` is the command `seecoder`."""

import sys

from seecoder.cli import main

if __name__ == "__main__":
    sys.exit(main())
