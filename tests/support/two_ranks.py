"""Two processes of one gloo group that run the same script, and what each of them leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

START = """
import os, sys, torch, torch.distributed as dist
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
"""
END = """
torch.save(answer, sys.argv[2] + f".{rank}")
os._exit(0)  # gloo's threads now and then abort the interpreter's own shutdown
"""


def on_two_ranks(body: str, tmp_path: Path) -> list[Any]:
    """What `body` assigns to `answer` on each rank; it finds its number in `rank`."""
    script, meeting = tmp_path / "rank.py", tmp_path / "meeting"
    script.write_text(START + body + END)
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *sys.path])}
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(meeting)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in ranks] == [0, 0]
    return [torch.load(f"{meeting}.{rank}", weights_only=True) for rank in range(2)]
