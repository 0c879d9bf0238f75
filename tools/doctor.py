import sys

from vosnet.commands.cli import run
from vosnet.commands.doctor import main

sys.exit(run(main))
