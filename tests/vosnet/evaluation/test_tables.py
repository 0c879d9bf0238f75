"""Summaries of scored sequences: means over objects, the table, CSV columns, and JSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from vosnet.errors import InputError
from vosnet.evaluation.results import SequenceResult
from vosnet.evaluation.tables import Evaluation, as_json, collect, read_json, table, write_csv
from vosnet.files import write_json
from vosnet.metrics import ObjectScores


def scored(name: str, *objects: tuple[float, float], missing: tuple[str, ...] = ()) -> SequenceResult:
    """Object i scores the i-th (J, F) in each of two frames."""
    scores = {i: ObjectScores(np.full(2, j), np.full(2, f)) for i, (j, f) in enumerate(objects, 1)}
    return SequenceResult(name, (), scores, dict.fromkeys(scores, ("00001", "00002")), missing)


RESULTS = [scored("dog", (0.2, 0.4), (0.4, 0.6)), scored("cat", (0.9, 0.7))]


def test_the_overall_number_weighs_objects_and_the_rows_weigh_the_objects_of_a_sequence() -> None:
    evaluation = collect(RESULTS)
    assert evaluation.overall["J_mean"] == pytest.approx((0.2 + 0.4 + 0.9) / 3)
    assert evaluation.overall["F_mean"] == pytest.approx((0.4 + 0.6 + 0.7) / 3)
    assert evaluation.overall["JF_mean"] == pytest.approx((0.5 + 1.7 / 3) / 2)
    header, dog, cat, overall, *_ = (line.split() for line in table(evaluation).splitlines())
    assert header == ["sequence", "objects", "frames", "J&F", "J", "F"]
    assert dog == ["dog", "2", "2", "0.400", "0.300", "0.500"]
    assert cat == ["cat", "1", "2", "0.800", "0.900", "0.700"]
    assert overall == ["overall", "3", "4", "0.533", "0.500", "0.567"]


def test_problems_of_all_sequences_forbid_a_number() -> None:
    with pytest.raises(InputError, match=r"(?s)E233 .*dog: extra.*cat: no folder"):
        collect([SequenceResult("dog", ("dog: extra",)), SequenceResult("cat", ("cat: no folder",))])


def test_csv_columns_hold_the_numbers_their_names_say(tmp_path: Path) -> None:
    names = ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay", "JF_mean")
    overall = {name: (i + 1) / 10 for i, name in enumerate(names)}
    row = {**overall, "J_mean": 0.123, "F_mean": 0.456}
    evaluation = Evaluation({"dog": ("dog_1",)}, {"dog_1": row}, dict(overall), {"dog": 2})
    paths = write_csv(tmp_path, "val", evaluation)
    assert [path.name for path in paths] == ["global_results-val.csv", "per-sequence_results-val.csv"]
    assert paths[0].read_text().splitlines()[1] == "0.700,0.100,0.200,0.300,0.400,0.500,0.600"
    assert paths[1].read_text() == "Sequence,J-Mean,F-Mean\ndog_1,0.123,0.456\n"


def test_json_comes_back_as_it_was_and_names_missing_frames(tmp_path: Path) -> None:
    evaluation = collect([*RESULTS, scored("cow", (0.5, 0.5), missing=("00002",))])
    write_json(tmp_path / "n.json", as_json(evaluation))
    assert read_json(tmp_path / "n.json") == evaluation.objects
    assert json.loads((tmp_path / "n.json").read_text())["missing"] == {"cow": ["00002"]}
    assert "1 missing = 0" in table(evaluation)
    assert "INCOMPLETE: 1 missing frames" in table(evaluation)


def test_seen_and_unseen_categories_weigh_the_same() -> None:
    evaluation = collect(RESULTS, {"dog_1": True, "dog_2": True, "cat_1": False})
    assert evaluation.overall["J_seen"] == pytest.approx(0.3)
    assert evaluation.overall["F_unseen"] == pytest.approx(0.7)
    assert evaluation.overall["overall"] == pytest.approx((0.3 + 0.5 + 0.9 + 0.7) / 4)
    assert table(evaluation).splitlines()[-1] == (
        "YouTube-VOS: J_seen 0.300, F_seen 0.500, J_unseen 0.900, F_unseen 0.700, overall 0.600"
    )
