import sys

from vosnet.commands.cli import run
from vosnet.commands.train import main

if __name__ == "__main__":  # data workers import this file
    sys.exit(run(main))
