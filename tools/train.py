import sys

from vosnet.commands.cli import run
from vosnet.commands.train import main

sys.exit(run(main))
