"""Kill -9 a training run ten times at random moments, resume it each time, and compare it with a whole one.

python -m tests.support.kill_ten [--kills 10] [--seed 0] [--steps 60] [--workers 0]

Every step saves a checkpoint, so kills fall into saving as often as into computing. A moment is uniform over
an eighth of the whole run's time, counted from the first row that the process writes; every fourth process is
killed at such a moment after its start instead, likely before its first step. Prints what each kill left,
then whether rows, weights and states are equal bit for bit; exit code 0 when they are.
"""

import argparse
import hashlib
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.support.toy_training import train_toy
from vosnet.training.journal import read_rows

# What depends on the clock or the machine; everything else must be equal.
TIMED = {
    "time", "elapsed_s", "samples_per_s", "images_per_s", "data_wait_s", "data_wait_share", "mem_peak_bytes"
}  # fmt: skip


def _train(out: Path, *overrides: str) -> None:
    train_toy(out, *overrides, resume="auto")


def rows(out: Path) -> list[dict[str, Any]]:
    """The journal of a run without what the clock decides."""
    return [{key: value for key, value in row.items() if key not in TIMED} for row in read_rows(out)]


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested states differ, bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{path}: keys"]
        return [found for key in a for found in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{path}: length"]
        return [found for i, (x, y) in enumerate(zip(a, b)) for found in differences(x, y, f"{path}[{i}]")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [path]


def compare_runs(whole: Path, killed: Path) -> list[str]:
    """What differs between two finished runs: journal rows, weights, and the state of every tensor."""
    found = [] if rows(whole) == rows(killed) else ["metrics.jsonl"]
    last = [run / "checkpoints" / "last" for run in (whole, killed)]
    if len({run.resolve().name for run in last}) > 1:
        found.append("the last step")
    states = [torch.load(run / "state.pt", weights_only=True)["trainer"] for run in last]
    found += differences(*states)
    weights = [(run / "model.safetensors") for run in last]
    if _tensors(weights[0]) != _tensors(weights[1]):
        found.append("model.safetensors")
    return found


def _newest_row(out: Path) -> str:
    found = read_rows(out)
    return str(found[-1]["time"]) if found else ""


def _tensors(path: Path) -> bytes:
    """The file behind its header, which also holds the seconds of training."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def kill_and_resume(out: Path, overrides: list[str], kills: int, longest_s: float, seed: int) -> None:
    """Start the run in `out` and kill it `kills` times; it is left unfinished.

    Raises:
        RuntimeError: it ended before it was killed that often.
    """
    context, moments = multiprocessing.get_context("forkserver"), random.Random(seed)
    context.set_forkserver_preload(["tests.support.toy_training"])
    for kill in range(1, kills + 1):
        moment, from_start = moments.uniform(0, longest_s), kill % 4 == 0
        newest = _newest_row(out)
        process = context.Process(target=_train, args=(out, *overrides), daemon=True)
        process.start()
        while not from_start and process.is_alive() and _newest_row(out) in {"", newest}:
            time.sleep(0.005)
        process.join(moment)
        if not process.is_alive():
            raise RuntimeError(f"the run ended before kill {kill} (exit code {process.exitcode})")
        process.kill()
        process.join()
        checkpoints = [path.parent.name for path in sorted(out.glob("checkpoints/step_*/manifest.json"))]
        torn = len(list(out.glob("checkpoints/step_*"))) - len(checkpoints)
        left = sum(".vosnet-tmp" in path.name for path in out.rglob(".*"))
        since = "the start" if from_start else "a row"
        print(
            f"kill {kill:2}: {moment:5.2f} s after {since}, {len(read_rows(out)):3} rows, last whole "
            f"checkpoint {checkpoints[-1] if checkpoints else '-'}, {torn} torn, {left} temporary files",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    overrides = [
        f"schedule={{steps: {options.steps}, decay: cosine}}", f"training.workers={options.workers}",
        "training.save_minutes=1e-9", "training.ema_decay=0.9",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        began = time.monotonic()
        train_toy(whole, *overrides)
        took = time.monotonic() - began
        print(f"uninterrupted: {options.steps} steps in {took:.1f} s; seed {options.seed}", flush=True)
        kill_and_resume(killed, overrides, options.kills, took / 8, options.seed)
        train_toy(killed, *overrides, resume="auto")
        found = compare_runs(whole, killed)
        weights = killed / "checkpoints" / "last" / "model.safetensors"
        digest = hashlib.sha256(_tensors(weights)).hexdigest()[:16]
        verdict = "DIFFER" if found else "EQUAL bit for bit"
        print(f"{len(rows(killed))} rows; weights {digest}; {verdict}")
        print("\n".join(found[:20]), end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
