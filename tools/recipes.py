import sys

from vosnet.commands.cli import run
from vosnet.commands.recipes import main

if __name__ == "__main__":
    sys.exit(run(main))
