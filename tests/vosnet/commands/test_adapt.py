"""`--adapt` of propagate and evaluate: which masks are final, what is told, what an interruption leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.data_roots import (
    moving_squares,
    write_davis_root,
    write_frames,
    write_results,
    write_youtube_vos_root,
)
from vosnet.adaptation.settings import make_settings
from vosnet.commands.cli import run
from vosnet.commands.evaluate import main as evaluate_main
from vosnet.commands.propagate import main as propagate_main
from vosnet.masks import read_mask, write_mask
from vosnet.propagation import Propagator
from vosnet.synthetic import make_clip
from vosnet.video.selection import Direction

CLIP = make_clip(7, num_frames=5, size=(64, 96))
QUICK = ["size=64", "iterations=2", "decoder_dims=[8,8,8,8]", "min_agreement=0", "precision=float32"]
PROPAGATE = [
    "--checkpoint", "random", "--set", "layer=layer2", "num_recent=2", "--progress", "quiet", "--no-overlay",
    "--device", "cpu", "--adapt", "--adapt-set", *QUICK,
]  # fmt: skip


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(CLIP.frames):
        Image.fromarray(frame).save(folder / f"{i}.png")
    write_mask(tmp_path / "first.png", CLIP.masks[0])
    return folder


def propagate(frames: Path, out: Path, *more: str) -> int:
    first = frames.parent / "first.png"
    return run(
        propagate_main, ["--video", str(frames), "--mask", str(first), "--out", str(out), *PROPAGATE, *more]
    )


def masks_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_adapted_masks_are_final_and_the_propagated_ones_stay_beside_them(
    frames: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert propagate(frames, out) == 0
    report = json.loads((out / "result.json").read_text())
    assert report["adaptation"]["iterations"] == 2
    assert report["adaptation"]["kept_propagated"] == ""
    assert report["adaptation"]["settings"]["size"] == 64
    assert report["seconds"]["adapt"] > 0
    before, after = masks_in(out / "propagated"), masks_in(out / "masks")
    assert set(before) == set(after) == {f"{i}.png" for i in range(5)}
    assert before["0.png"] == after["0.png"]
    assert before["4.png"] != after["4.png"]
    assert len(report["sha256"]) == 5


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_masks_are_those_of_the_propagator_in_the_same_direction(
    frames: Path, tmp_path: Path, direction: Direction
) -> None:
    out, last = tmp_path / "out", tmp_path / "last.png"
    write_mask(last, CLIP.masks[4])
    first = tmp_path / "first.png"
    given = ["--mask", f"0={first}", f"4={last}", "--direction", direction]
    assert propagate(frames, out, *given) == 0
    settings = make_settings(
        size=64, iterations=2, decoder_dims=[8, 8, 8, 8], min_agreement=0, precision="float32"
    )
    propagator = Propagator.from_checkpoint("random", device="cpu", layer="layer2", num_recent=2)
    masks = {0: CLIP.masks[0], 4: CLIP.masks[4]}
    adapted = propagator.adapt(list(CLIP.frames), masks, settings, direction=direction)
    found = dict(adapted.masks(list(CLIP.frames)))
    assert len(found) == 5
    for index, mask in found.items():
        assert np.array_equal(read_mask(out / f"masks/{index}.png").ids, mask), index


def test_a_model_that_lost_an_object_leaves_the_propagated_masks(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert propagate(frames, out, "--adapt-set", *QUICK[:3], "min_agreement=0.9") == 0
    assert "propagated masks kept, the appearance model lost object" in capsys.readouterr().out
    assert "lost object" in json.loads((out / "result.json").read_text())["adaptation"]["kept_propagated"]
    assert masks_in(out / "propagated") == masks_in(out / "masks")


def test_resuming_trains_anew_without_propagating_and_gives_the_same_masks(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert propagate(frames, out) == 0
    whole = masks_in(out / "masks")
    (out / "result.json").unlink()
    (out / "masks/3.png").unlink()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the propagated masks were complete")

    monkeypatch.setattr(Propagator, "propagate", never)
    assert propagate(frames, out, "--resume") == 0
    assert masks_in(out / "masks") == whole
    (out / "result.json").unlink()
    assert propagate(frames, out, "--resume", "--adapt-set", *QUICK, "seed=1") == 2


def test_one_frame_gives_the_mask_itself(frames: Path, tmp_path: Path) -> None:
    for path in list(frames.iterdir())[1:]:
        path.unlink()
    write_mask(tmp_path / "first.png", CLIP.masks[0])
    assert propagate(frames, tmp_path / "out") == 0
    (mask,) = (tmp_path / "out/masks").iterdir()
    assert np.array_equal(read_mask(mask).ids, CLIP.masks[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--adapt-set", "iterations=0"], "iterations"), (["--adapt-set", "leraning=1"], "leraning")],
)
def test_wrong_settings_are_named_before_anything_is_written(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert propagate(frames, tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    return write_davis_root(
        tmp_path / "davis", {"ant": moving_squares(5), "bee": moving_squares(5, objects=1)}
    )


def evaluate(davis: Path, *more: object) -> int:
    common = [
        "--root",
        str(davis),
        "--split",
        "val",
        "--workers",
        "1",
        "--device",
        "cpu",
        "--progress",
        "quiet",
    ]
    return run(evaluate_main, [*common, *map(str, more)])


def test_evaluate_adapts_masks_on_disk_draws_curves_and_resumes_by_sequence(
    davis: Path, tmp_path: Path
) -> None:
    before = write_results(
        tmp_path / "before", {"ant": moving_squares(5), "bee": moving_squares(5, objects=1)}
    )
    out = tmp_path / "out"
    arguments = ["--results", before, "--adapt", "--out", out, "--adapt-curve", 1, "--adapt-set", *QUICK]
    assert evaluate(davis, *arguments) == 0
    assert {path.name for path in (out / "ant").iterdir()} == {f"{t:05d}.png" for t in range(5)}
    assert json.loads((out / "adaptation/bee.json").read_text())["iterations"] == 2
    curve = json.loads((out / "adaptation/ant_curve.json").read_text())
    assert curve["baseline"] == {"J": 1.0, "F": 1.0, "JF": 1.0}
    assert [row["iteration"] for row in curve["rows"]] == [1, 2]
    assert curve["rows"][0]["J"] == curve["rows"][0]["J_propagated"] < 1
    assert (out / "adaptation/ant_curve.png").is_file()
    numbers = json.loads((out / "evaluation.json").read_text())
    assert numbers["overall"]["J_mean"] < 1

    kept, whole = (out / "bee/00004.png").stat().st_mtime_ns, (out / "ant/00003.png").read_bytes()
    (out / "ant/00003.png").unlink()
    assert evaluate(davis, *arguments, "--resume") == 0
    assert (out / "bee/00004.png").stat().st_mtime_ns == kept
    assert (out / "ant/00003.png").read_bytes() == whole


def test_evaluate_propagates_then_adapts(davis: Path, tmp_path: Path) -> None:
    code = evaluate(
        davis, "--checkpoint", "random", "--set", "layer=layer2", "--out", tmp_path / "out", "--adapt",
        "--adapt-set", *QUICK,
    )  # fmt: skip
    assert code == 0
    assert (tmp_path / "out/adaptation/ant.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results", "{tmp}", "--adapt"], "--adapt goes with"),
        (["--results", "{tmp}", "--adapt", "--out", "{tmp}"], "must differ"),
        (["--checkpoint", "random", "--adapt-set", "size=64"], "go with --adapt only"),
        (["--checkpoint", "random", "--adapt", "--adapt-curve", "5"], "--adapt-curve needs"),
        (["--results", "{tmp}", "--preset", "dul", "--adapt", "--out", "{tmp}/o"], "--preset goes with"),
    ],
)
def test_options_that_do_not_fit_are_named(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert evaluate(davis, *(argument.format(tmp=tmp_path) for argument in arguments)) == 2
    assert message in capsys.readouterr().err


def test_masks_that_are_missing_are_named(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write_results(tmp_path / "before", {"ant": moving_squares(3)})
    assert (
        evaluate(davis, "--results", before, "--adapt", "--out", tmp_path / "out", "--adapt-set", *QUICK) == 3
    )
    error = capsys.readouterr().err
    assert "2 masks to adapt on are missing, first 00003.png" in error
    assert "bee" in error


def test_youtube_vos_adapts_on_the_masks_that_are_asked_for_among_all_frames(tmp_path: Path) -> None:
    root = write_youtube_vos_root(tmp_path / "ytvos")
    for name in ("aa11", "bb22"):
        write_frames(root / "valid_all_frames/JPEGImages" / name, [f"{t:05d}" for t in range(26)])
    out = tmp_path / "out"
    code = evaluate(
        root, "--dataset", "ytvos", "--split", "valid", "--results", root / "valid/Annotations",
        "--adapt", "--out", out, "--adapt-set", *QUICK,
    )  # fmt: skip
    assert code == 0
    assert {path.name for path in (out / "bb22").iterdir()} == {f"{t:05d}.png" for t in range(0, 26, 5)}
    assert json.loads((out / "adaptation/aa11.json").read_text())["frames"] == 6
