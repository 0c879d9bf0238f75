"""`python -m vosnet_kernels.aot`."""

import sys

from vosnet_kernels.aot.command import main

if __name__ == "__main__":  # worker processes import this file too
    sys.exit(main())
