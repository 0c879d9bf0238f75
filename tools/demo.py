import sys

from vosnet.commands.cli import run
from vosnet.commands.demo import main

sys.exit(run(main))
