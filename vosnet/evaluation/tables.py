"""Scores of a benchmark as a table, as JSON, and as CSV files in davis2017-evaluation's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vosnet.errors import InputError
from vosnet.evaluation.results import SequenceResult
from vosnet.files import write_bytes
from vosnet.metrics import four_way_mean, object_statistics, summarize
from vosnet.metrics.summary import STATISTICS

_GLOBAL_COLUMNS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")


@dataclass(frozen=True)
class Evaluation:
    """All numbers of one result.

    Attributes:
        sequences: object keys ("<sequence>_<id>") of each sequence, in the order of the split.
        objects: `STATISTICS` by object key.
        overall: means over objects and JF_mean; for YouTube-VOS also the four groups and their mean.
        frames: scored frames of each sequence.
        missing: frames per sequence that scored 0 because the result lacks them.
    """

    sequences: dict[str, tuple[str, ...]]
    objects: dict[str, dict[str, float]]
    overall: dict[str, float | None]
    frames: dict[str, int]
    missing: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def sequence_means(self, name: str) -> dict[str, float]:
        """Means over the objects of one sequence, and JF_mean."""
        return summarize({key: self.objects[key] for key in self.sequences[name]})


def collect(results: Sequence[SequenceResult], seen: Mapping[str, bool] | None = None) -> Evaluation:
    """Summarize scored sequences.

    Args:
        results: one per sequence.
        seen: for YouTube-VOS, whether each object ("<video>_<id>") is of a category of the training set.

    Raises:
        InputError: some results have problems; all of them are listed and there is no number.
    """
    problems = [problem for result in results for problem in result.problems]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise InputError(
            "E233",
            "no score, because the results are not complete and right; --allow-missing counts missing frames "
            f"(and nothing else) as 0:\n{listed}",
        )
    keys = {result.name: tuple(f"{result.name}_{index}" for index in result.scores) for result in results}
    objects = {
        f"{result.name}_{index}": object_statistics(scores)
        for result in results
        for index, scores in result.scores.items()
    }
    overall: dict[str, float | None] = dict(summarize(objects))
    if seen is not None:
        overall.update(four_way_mean(objects, seen))
    frames = {r.name: max(len(stems) for stems in r.stems.values()) for r in results}
    return Evaluation(keys, objects, overall, frames, {r.name: r.missing for r in results if r.missing})


def read_json(path: Path) -> dict[str, dict[str, float]]:
    """Statistics by object of a JSON that an evaluation wrote.

    Raises:
        InputError: not such a file.
    """
    try:
        objects = json.loads(path.read_text(encoding="utf-8"))["objects"]
        return {str(k): {name: float(v[name]) for name in STATISTICS} for k, v in objects.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "E236", f"{path} is not a JSON of evaluate ({type(error).__name__}: {error})"
        ) from error


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The JSON document: "objects", "overall", and "missing" if missing frames were counted as 0."""
    document: dict[str, Any] = {"objects": evaluation.objects, "overall": evaluation.overall}
    if evaluation.missing:
        document["missing"] = {name: list(stems) for name, stems in evaluation.missing.items()}
    return document


def csv_names(split: str) -> tuple[str, str]:
    """Names of the official tool's two files."""
    return f"global_results-{split}.csv", f"per-sequence_results-{split}.csv"


def write_csv(folder: Path, split: str, evaluation: Evaluation) -> list[Path]:
    """Write means over all objects, and J and F of each object, as the official tool does.

    Differs: the official tool prints old files when it finds them; here they are never read.
    """
    overall = evaluation.overall
    row = [overall["JF_mean"], *(overall[name] for name in STATISTICS)]
    total = ",".join(_GLOBAL_COLUMNS) + "\n" + ",".join(f"{value:.3f}" for value in row) + "\n"
    lines = ["Sequence,J-Mean,F-Mean"] + [
        f"{key},{scores['J_mean']:.3f},{scores['F_mean']:.3f}" for key, scores in evaluation.objects.items()
    ]
    paths = [folder / name for name in csv_names(split)]
    write_bytes(paths[0], total.encode())
    write_bytes(paths[1], ("\n".join(lines) + "\n").encode())
    return paths


def table(evaluation: Evaluation) -> str:
    """Rows per sequence and the overall numbers, for a terminal."""
    width = max(8, *(len(name) for name in evaluation.sequences))
    lines = [f"{'sequence':{width}}  objects  frames    J&F      J      F"]
    shown = ("JF_mean", "J_mean", "F_mean")
    for name, keys in evaluation.sequences.items():
        row = evaluation.sequence_means(name)
        means = "  ".join(f"{row[key]:.3f}" for key in shown)
        mark = f"  {len(evaluation.missing[name])} missing = 0" if name in evaluation.missing else ""
        lines.append(f"{name:{width}}  {len(keys):7}  {evaluation.frames[name]:6}  {means}{mark}")
    overall = evaluation.overall
    means = "  ".join(f"{overall[key]:.3f}" for key in shown)
    lines.append(
        f"{'overall':{width}}  {len(evaluation.objects):7}  {sum(evaluation.frames.values()):6}  {means}"
    )
    for letter in ("J", "F"):
        parts = [f"{part} {overall[f'{letter}_{part}']:.3f}" for part in ("mean", "recall", "decay")]
        lines.append(f"{letter}: {', '.join(parts)}")
    if "overall" in overall:
        names = ("J_seen", "F_seen", "J_unseen", "F_unseen", "overall")
        lines.append("YouTube-VOS: " + ", ".join(f"{name} {_shown(overall[name])}" for name in names))
    if evaluation.missing:
        count = sum(map(len, evaluation.missing.values()))
        lines.append(
            f"INCOMPLETE: {count} missing frames were counted as 0; not comparable with other results"
        )
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
