"""`propagate` on small generated clips: what is written, what is refused, and what an interruption leaves."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.zoo import corrupt
from vosnet.commands.cli import run
from vosnet.commands.propagate import main
from vosnet.export.mask_files import MaskFiles
from vosnet.masks import read_mask, write_mask
from vosnet.models import build_encoder, save_encoder
from vosnet.synthetic import make_clip, write_video

ROOT = Path(__file__).resolve().parents[3]
CLIP = make_clip(7, num_frames=10, size=(64, 96))
FAST = ["--checkpoint", "random", "--set", "layer=layer2", "num_recent=2", "--progress", "quiet"]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(CLIP.frames):
        Image.fromarray(frame).save(folder / f"{i + 1}.png")
    return folder


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    write_mask(tmp_path / "first.png", CLIP.masks[0])
    return tmp_path / "first.png"


def propagate(*arguments: object) -> int:
    return run(main, [*map(str, arguments), *FAST])


def masks_in(out: Path) -> dict[str, np.ndarray]:
    return {path.name: read_mask(path).ids for path in (out / "masks").iterdir()}


def test_masks_are_named_like_the_frames_and_the_first_is_the_one_given(
    frames: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert propagate("--video", frames, "--mask", mask, "--out", out, "--format", "palette", "binary") == 0
    masks = masks_in(out)
    assert set(masks) == {f"{i}.png" for i in range(1, 11)}
    assert np.array_equal(masks["1.png"], CLIP.masks[0])
    assert set(np.unique(masks["5.png"])) <= {0, 1, 2, 3}
    assert np.array_equal(np.asarray(Image.open(out / "binary/1/1.png")) > 0, CLIP.masks[0] == 1)
    report = json.loads((out / "result.json").read_text())
    assert report["objects"] == [1, 2, 3]
    assert report["protocol"]["num_recent"] == 2
    assert len(report["sha256"]) == 10
    printed = capsys.readouterr().out
    assert printed.startswith("encoder: random encoder")
    assert "3 objects: 1 " in printed
    assert (out / "sheet.jpg").is_file()


def test_a_video_gets_an_overlay_with_its_own_length_and_rate(mask: Path, tmp_path: Path) -> None:
    import av

    write_video(tmp_path / "clip.mp4", CLIP, fps=12.5)
    assert propagate("--video", tmp_path / "clip.mp4", "--mask", mask, "--out", tmp_path / "out") == 0
    with av.open(str(tmp_path / "out/overlay.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt) == ("h264", "yuv420p")
        times = [frame.time for frame in container.decode(stream)]
    assert np.allclose(np.diff(times), 0.08, atol=1e-3)
    assert len(times) == 10


def test_f20_an_object_joins_at_the_frame_of_its_mask(frames: Path, mask: Path, tmp_path: Path) -> None:
    late = np.zeros((64, 96), np.uint8)
    late[10:30, 10:30] = 9
    write_mask(tmp_path / "late.png", late)
    out = tmp_path / "out"
    assert propagate("--video", frames, "--mask", mask, f"4={tmp_path / 'late.png'}", "--out", out) == 0
    masks = masks_in(out)
    assert 9 not in masks["4.png"]
    assert (masks["5.png"][10:30, 10:30] == 9).all()


def test_switches_add_up_over_several_set_options(frames: Path, mask: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        propagate("--video", frames, "--mask", mask, "--set", "k=3", "--set", "radius=2", "--out", out) == 0
    )
    protocol = json.loads((out / "result.json").read_text())["protocol"]
    assert (protocol["k"], protocol["radius"], protocol["num_recent"]) == (3, 2, 2)


def test_a_mask_in_the_middle_goes_both_ways(frames: Path, tmp_path: Path) -> None:
    write_mask(tmp_path / "middle.png", CLIP.masks[5])
    out = tmp_path / "out"
    assert propagate("--video", frames, "--mask", f"5={tmp_path / 'middle.png'}", "--out", out) == 0
    masks = masks_in(out)
    assert len(masks) == 10
    assert np.array_equal(masks["6.png"], CLIP.masks[5])
    assert masks["1.png"].any()


def test_f18_ids_with_holes_are_kept(frames: Path, tmp_path: Path) -> None:
    ids = np.array([0, 1, 7, 200], np.uint8)[CLIP.masks[0]]
    write_mask(tmp_path / "m.png", ids)
    assert propagate("--video", frames, "--mask", tmp_path / "m.png", "--out", tmp_path / "out") == 0
    assert set(np.unique(masks_in(tmp_path / "out")["2.png"])) <= {0, 1, 7, 200}


def test_f08_one_frame_gives_the_mask_itself(mask: Path, tmp_path: Path) -> None:
    Image.fromarray(CLIP.frames[0]).save(tmp_path / "still.png")
    assert propagate("--video", tmp_path / "still.png", "--mask", mask, "--out", tmp_path / "out") == 0
    assert np.array_equal(masks_in(tmp_path / "out")["still.png"], CLIP.masks[0])


def test_part_of_a_clip_with_a_stride(frames: Path, tmp_path: Path) -> None:
    write_mask(tmp_path / "m.png", CLIP.masks[2])
    arguments = ["--start", 2, "--end", 9, "--stride", 3, "--out", tmp_path / "out"]
    assert propagate("--video", frames, "--mask", tmp_path / "m.png", *arguments) == 0
    assert set(masks_in(tmp_path / "out")) == {"3.png", "6.png", "9.png"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--mask", "{tmp}/small.png"], 4, "mask size 48x32 does not match video 96x64"),
        (["--mask", "{tmp}/empty.png"], 4, "the mask is empty"),
        (["--mask", "{tmp}/nothing.png"], 4, "nothing.png"),
        (["--mask", "{tmp}/many.png"], 4, "coco-video"),
        (["--mask", "99={tmp}/first.png"], 2, "frame 99, which is not processed"),
        (["--mask", "{tmp}/first.png", "--start", "7", "--end", "3"], 2, "which has 10 frames"),
        (["--mask", "{tmp}/first.png", "--set", "radus=3"], 2, "radius"),
        (["--mask", "{tmp}/first.png", "--checkpoint", "{tmp}/none.safetensors"], 4, "none.safetensors"),
        (["--mask", "{tmp}/first.png", "--opacity", "3"], 2, "--opacity"),
        (["--mask", "{tmp}/first.png", "--resume", "--overwrite"], 2, "E133"),
        (["--mask", "0={tmp}/first.png", "0={tmp}/small.png"], 2, "E135 two masks for frame 0"),
        (["--mask", "{tmp}/first.png", "{tmp}/small.png"], 2, "E135 two masks for the first frame"),
        (["--mask", "{tmp}/first.png", "--videos", "{tmp}"], 2, "E132"),
        (["--mask", "{tmp}/first.png", "--adapt-set", "size=64"], 2, "E138"),
        (["--mask", "{tmp}/first.png", "--set", "k"], 2, "E136"),
        ([], 2, "--mask"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    arguments: list[str],
    code: int,
    message: str,
    frames: Path,
    mask: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_mask(tmp_path / "small.png", np.ones((32, 48), np.uint8))
    write_mask(tmp_path / "empty.png", np.zeros((64, 96), np.uint8))
    Image.fromarray((np.arange(64 * 96) // 20).astype(np.uint16).reshape(64, 96)).save(tmp_path / "many.png")
    out = tmp_path / "out"
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    fast = [] if "--checkpoint" in given or "--set" in given else FAST
    assert run(main, ["--video", str(frames), "--out", str(out), *given, *fast]) == code
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not out.exists()


def test_f16_a_mask_of_another_size_is_resized_only_when_asked(frames: Path, tmp_path: Path) -> None:
    write_mask(tmp_path / "small.png", CLIP.masks[0][::2, ::2].copy())
    arguments = ["--video", frames, "--mask", tmp_path / "small.png", "--out", tmp_path / "out"]
    assert propagate(*arguments) == 4
    assert propagate(*arguments, "--resize-mask", "nearest") == 0
    assert masks_in(tmp_path / "out")["1.png"].shape == (64, 96)


def test_f07_frames_that_cannot_be_decoded_hold_the_mask_and_exit_3(
    mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "whole.mp4", make_clip(7, num_frames=60, size=(64, 96)))
    damaged = corrupt(tmp_path / "whole.mp4", tmp_path / "damaged.mp4", 0.5, 6000)
    out = tmp_path / "out"
    assert propagate("--video", damaged, "--mask", mask, "--out", out, "--no-overlay") == 3
    bad = json.loads((out / "result.json").read_text())["bad_frames"]
    assert f"E303 {len(bad)} frames could not be decoded" in capsys.readouterr().err
    masks = masks_in(out)
    assert len(masks) == 60
    assert (
        propagate("--video", damaged, "--mask", mask, "--out", tmp_path / "o2", "--on-bad-frame", "stop") == 4
    )


def test_f28_an_earlier_result_is_refused_then_overwritten(frames: Path, mask: Path, tmp_path: Path) -> None:
    arguments = ["--video", frames, "--mask", mask, "--out", tmp_path / "out", "--no-overlay"]
    assert propagate(*arguments) == 0
    assert propagate(*arguments) == 2
    assert propagate(*arguments, "--overwrite") == 0
    assert propagate(*arguments, "--resume") == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with frames, a first mask and their result, shared by tests that only look at it."""
    root = tmp_path_factory.mktemp("finished")
    (root / "frames").mkdir()
    for i, frame in enumerate(CLIP.frames[:4]):
        Image.fromarray(frame).save(root / f"frames/{i}.png")
    write_mask(root / "first.png", CLIP.masks[0])
    clip = ["--video", root / "frames", "--mask", root / "first.png"]
    assert propagate(*clip, "--out", root / "out", "--no-overlay", "--start", 0, "--end", 3) == 0
    return root


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--video", "{tmp}/frames"], "video was"),
        (["--mask", "{tmp}/other.png"], "masks was"),
        (["--mask", "1={root}/first.png"], "masks was"),
        (["--start", "1"], "frames was"),
        (["--end", "4"], "frames was"),
        (["--stride", "2"], "frames was"),
        (["--checkpoint", "{tmp}/other.safetensors"], "encoder was 'random"),
        (["--set", "k=3"], "protocol was"),
        (["--direction", "both"], "direction was 'forward', now 'both'"),
        (["--adapt"], "adaptation was None"),
    ],
)
def test_a_result_is_not_resumed_with_other_settings(
    finished: Path,
    tmp_path: Path,
    changed: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished / "frames", tmp_path / "frames")
    write_mask(tmp_path / "other.png", CLIP.masks[1])
    save_encoder(tmp_path / "other.safetensors", build_encoder(layer="layer2", seed=1), {})
    clip = ["--video", finished / "frames", "--mask", finished / "first.png", "--end", 3]
    options = [option.format(root=finished, tmp=tmp_path) for option in changed]
    arguments = [str(a) for a in (*clip, "--out", finished / "out", "--resume", *FAST, *options)]
    before = {path: path.read_bytes() for path in (finished / "out").rglob("*") if path.is_file()}
    assert run(main, arguments) == 2
    error = capsys.readouterr().err
    assert "E119" in error
    assert message in error
    after = {path: path.read_bytes() for path in (finished / "out").rglob("*") if path.is_file()}
    assert after == before


def test_a_complete_result_is_told_and_left_as_it_is(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = ["--video", finished / "frames", "--mask", finished / "first.png", "--end", 3]
    stamps = {path: path.stat().st_mtime_ns for path in (finished / "out/masks").iterdir()}
    assert propagate(*clip, "--out", finished / "out", "--resume", "--json") == 0
    captured = capsys.readouterr()
    assert "this result is complete" in captured.err
    report = json.loads(captured.out)["results"][0]
    assert report == {
        "out": str(finished / "out"),
        **json.loads((finished / "out/result.json").read_text()),
    }
    assert {path: path.stat().st_mtime_ns for path in (finished / "out/masks").iterdir()} == stamps


def test_an_interrupted_clip_resumes_to_the_same_masks(
    frames: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--video", frames, "--mask", mask, "--no-overlay", "--save-every", 3]
    assert propagate(*arguments, "--out", tmp_path / "whole") == 0
    write = MaskFiles.write
    written: list[int] = []

    def interrupted(self: MaskFiles, place: int, mask: np.ndarray) -> None:
        if place == 7 and 7 not in written:
            written.append(place)
            raise KeyboardInterrupt
        written.append(place)
        write(self, place, mask)

    monkeypatch.setattr(MaskFiles, "write", interrupted)
    assert propagate(*arguments, "--out", tmp_path / "out") == 130
    before = len(written)
    assert propagate(*arguments, "--out", tmp_path / "out", "--resume") == 0
    assert len(written) - before < 10, "the resumed run started from the beginning"
    whole, resumed = masks_in(tmp_path / "whole"), masks_in(tmp_path / "out")
    assert whole.keys() == resumed.keys()
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "out/state.safetensors").exists()


def test_f21_a_full_disk_ends_with_6_and_can_be_resumed(frames: Path, mask: Path, tmp_path: Path) -> None:
    arguments = ["--video", frames, "--mask", mask, "--out", tmp_path / "out", "--no-overlay"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        code = propagate(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 6
    assert not list((tmp_path / "out").rglob("*vosnet-tmp*"))
    assert propagate(*arguments, "--resume") == 0
    assert len(masks_in(tmp_path / "out")) == 10


def test_a_folder_of_clips_goes_on_after_a_bad_one(
    mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, masks = tmp_path / "videos", tmp_path / "masks"
    videos.mkdir()
    write_video(videos / "good.mp4", CLIP)
    (videos / "bad.mp4").write_bytes(b"this is no video")
    for name in ("good", "bad"):
        write_mask(masks / f"{name}.png", CLIP.masks[0])
    out = tmp_path / "out"
    assert propagate("--videos", videos, "--masks", masks, "--out", out, "--no-overlay", "--json") == 3
    printed = json.loads(capsys.readouterr().out)
    assert [result["out"] for result in printed["results"]] == [str(out / "good")]
    assert [failure["video"] for failure in printed["failures"]] == [str(videos / "bad.mp4")]
    assert json.loads((out / "summary.json").read_text()) == printed
    assert printed["failures"][0]["exit_code"] == 4
    assert "bad.mp4" in printed["failures"][0]["error"]
    assert len(masks_in(out / "good")) == 10


def test_one_clip_alone_ends_with_the_code_of_its_error(mask: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"this is no video")
    assert propagate("--video", tmp_path / "bad.mp4", "--mask", mask, "--out", tmp_path / "out") == 4
    (tmp_path / "none").mkdir()
    assert propagate("--videos", tmp_path / "none", "--masks", tmp_path) == 4


def test_f39_a_closed_output_ends_quietly() -> None:
    enter = "from vosnet.commands.cli import entry_point; entry_point()"
    command = f"{sys.executable} -c '{enter}' propagate --help | true"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_help_is_quick_to_import_and_shows_examples() -> None:
    script = (
        "import sys\nfrom vosnet.commands.cli import run\nfrom vosnet.commands.propagate import main\n"
        "assert run(main, ['--help']) == 0\nassert 'torch' not in sys.modules\nassert 'av' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("python tools/propagate.py") >= 3
