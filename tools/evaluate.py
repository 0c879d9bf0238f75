import sys

from vosnet.commands.cli import run
from vosnet.commands.evaluate import main

if __name__ == "__main__":  # scoring processes import this file
    sys.exit(run(main))
