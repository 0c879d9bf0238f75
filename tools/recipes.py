import sys

from vosnet.commands.cli import run
from vosnet.commands.recipes import main

sys.exit(run(main))
