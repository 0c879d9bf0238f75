import sys

from vosnet.commands.cli import run
from vosnet.commands.propagate import main

sys.exit(run(main))
