"""Training curves as a picture, if matplotlib is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vosnet import files
from vosnet.training.journal import read_rows

CURVES_NAME = "curves.png"
_NOT_DRAWN = {
    "time", "step", "split", "epoch", "data_wait_s", "samples_per_s", "elapsed_s", "mem_peak_bytes",
    "skipped_steps", "sequences",
}  # fmt: skip


def draw_curves(folder: Path, say: Callable[[str], None]) -> Path | None:
    """Draw every logged value over the steps into `curves.png`; None without matplotlib or without rows.

    Args:
        folder: the run folder.
        say: told when nothing can be drawn, and why.
    """
    rows = read_rows(folder)
    if not rows:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        say("no curves.png: matplotlib is missing (pip install 'vosnet[train]'); metrics.jsonl has it all")
        return None
    curves = _curves(rows)
    columns = 3
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * lines))
    figure.subplots_adjust(0.06, 0.12 / lines + 0.02, 0.98, 1 - 0.1 / lines, 0.25, 0.5)
    FigureCanvasAgg(figure)
    for index, (name, (steps, values)) in enumerate(curves.items()):
        axes = figure.add_subplot(lines, columns, index + 1)
        axes.plot(steps, values, linewidth=1, marker="." if len(steps) < 30 else None)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.grid(visible=True, alpha=0.3)
    target = folder / CURVES_NAME
    with files.atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=90)
    return target


def _curves(rows: list[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in _NOT_DRAWN and isinstance(value, int | float):
                steps, values = curves.setdefault(key if row["split"] == "train" else f"val {key}", ([], []))
                steps.append(row["step"])
                values.append(value)
    return curves
