import sys

from vosnet.commands.cli import run
from vosnet.commands.prepare import main

if __name__ == "__main__":
    sys.exit(run(main))
