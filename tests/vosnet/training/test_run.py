"""Runs from beginning to end: what is written, what is kept, how they are continued."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.probe import stop_after
from tests.support.toy_training import losses, toy_recipe, train_toy
from vosnet.errors import InputError, StorageError, UsageError
from vosnet.models import load_model
from vosnet.propagation import Propagator
from vosnet.recipe import load_recipe
from vosnet.training.journal import forget_rows_after, read_rows

FINISHED = ("preset=crw", "training.ema_decay=0.9", "training.clip_grad_norm=5.0")
KEYS = {
    "time", "step", "epoch", "split", "loss", "lr", "grad_norm", "samples_per_s", "images_per_s",
    "data_wait_s", "data_wait_share", "mem_peak_bytes", "elapsed_s", "skipped_steps",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    result = train_toy(out, *FINISHED)
    assert (result.step, result.completed, result.exit_code) == (6, True, 0)
    return out


def test_a_run_leaves_the_documented_files(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {
        "recipe.yaml",
        "recipe.resolved.yaml",
        "env.json",
        "log.txt",
        "metrics.jsonl",
        "checkpoints",
    } <= names
    files = {path.name for path in (finished / "checkpoints" / "last").iterdir()}
    assert files == {"model.safetensors", "state.pt", "manifest.json"}
    assert {"torch", "commit", "host", "command"} <= set(json.loads((finished / "env.json").read_text()))


def test_metrics_have_the_documented_keys_at_every_step(finished: Path) -> None:
    rows = read_rows(finished)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(set(row) >= KEYS for row in rows)
    assert {"space_time", "cross_view"} <= set(rows[0])
    assert rows[1]["lr"] > rows[0]["lr"]  # warm-up
    assert rows[-1]["lr"] < rows[2]["lr"]  # decay


def test_the_run_folder_is_a_checkpoint(finished: Path) -> None:
    loaded = load_model(finished)
    assert loaded.meta.layer == "layer2"
    assert loaded.meta.extra["step"] == 6
    assert loaded.meta.extra["recipe"] == "toy"
    assert loaded.meta.preset == "crw"
    assert Propagator.from_checkpoint(finished, device="cpu").protocol.up_align_corners is False
    assert Propagator.from_checkpoint(finished, "dul", "cpu").protocol.up_align_corners is True


def test_the_checkpoint_says_which_layer_to_read_at_test_time(tmp_path: Path) -> None:
    sections = ["encoder={layer: layer3, test_layer: layer2}", "schedule={steps: 1}"]
    train_toy(tmp_path / "run", *sections)
    loaded = load_model(tmp_path / "run")
    assert loaded.meta.layer == "layer2"
    assert loaded.encoder.feature_dim == 128
    assert load_model(tmp_path / "run", layer="layer3").encoder.feature_dim == 256
    with pytest.raises(UsageError, match="test_layer layer4 lies after layer layer3"):
        toy_recipe("encoder={layer: layer3, test_layer: layer4}")


def test_the_resolved_recipe_starts_the_same_run(finished: Path) -> None:
    again = load_recipe(finished / "recipe.resolved.yaml").recipe
    assert again == toy_recipe(*FINISHED).recipe


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", "schedule.steps=30", "training.log_steps=5")
    values = list(losses(tmp_path / "run").values())
    assert values[-1] < values[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_f31_a_continued_run_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, finished: Path, workers: int
) -> None:
    options = ["training.ema_decay=0.9", "training.clip_grad_norm=5.0", f"training.workers={workers}"]
    out = tmp_path / "run"
    part = train_toy(out, *options, "schedule.steps=6", resume="auto")
    assert part.completed
    # As if killed after a checkpoint at step 4: take that state and do the rest again.
    stopped = tmp_path / "stopped"
    _train_and_stop(stopped, 4, *options)
    train_toy(stopped, *options, resume="auto")
    assert losses(stopped) == losses(finished)
    states = [torch.load(run / "checkpoints/last/state.pt", weights_only=True) for run in (stopped, finished)]
    _assert_equal(states[0]["trainer"], states[1]["trainer"])


def _train_and_stop(out: Path, after: int, *options: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, after)
        result = train_toy(out, *options)
    assert (result.step, result.completed, result.exit_code) == (after, False, 143)


def _assert_equal(a: object, b: object) -> None:
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_equal(a[key], b[key])
    elif isinstance(a, list) and isinstance(b, list):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            _assert_equal(x, y)
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_f31_time_spent_is_remembered(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["schedule={minutes: 0.05, decay: cosine}"]
    _train_and_stop(out, 2, *options)
    spent = torch.load(out / "checkpoints/last/state.pt", weights_only=True)["loop"]["seconds"]
    assert spent > 0
    train_toy(out, *options, resume="auto")
    rows = read_rows(out)
    assert rows[1]["elapsed_s"] <= rows[2]["elapsed_s"]
    assert 3 <= rows[-1]["elapsed_s"] < 30  # the budget of 3 s counts over both parts


@pytest.mark.parametrize(
    "override", ["optimizer.lr=2e-3", "seed=4", "objective.temperature=0.1", "data.clip_len=3"]
)
def test_f31_a_changed_recipe_is_not_continued(finished: Path, override: str) -> None:
    options = ["training.ema_decay=0.9", "training.clip_grad_norm=5.0", override]
    with pytest.raises(UsageError, match=rf"E104 .*{override.split('=', maxsplit=1)[0]}"):
        train_toy(finished, *options, resume="auto")


def test_f31_a_longer_schedule_and_other_workers_are_continued(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", "schedule={steps: 2}")
    longer = ["schedule={steps: 3}", "training.workers=2", "training.log_steps=3"]
    assert train_toy(tmp_path / "run", *longer, resume="auto").step == 3


def test_f28_a_folder_with_a_run_needs_resume_or_overwrite(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E103 .*already holds a run.*--resume auto.*--overwrite"):
        train_toy(finished)
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_bytes(b"x")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="E103 .*not empty.*cat.jpg"):
            train_toy(foreign, overwrite=overwrite)
    assert [path.name for path in foreign.iterdir() if path.suffix == ".jpg"] == ["cat.jpg"]


def test_f28_overwrite_removes_only_what_training_wrote(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_toy(out, "schedule={steps: 2}")
    (out / "notes.md").write_text("mine")
    assert train_toy(out, "schedule={steps: 1}", overwrite=True).step == 1
    assert (out / "notes.md").read_text() == "mine"
    assert list(losses(out)) == [1]


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_f30_a_path_that_cannot_be_a_folder_is_a_storage_error(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="E602 .*file"):
        train_toy(tmp_path / where)


def test_f24_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["training.ema_decay=0.9", "training.clip_grad_norm=5.0", "training.save_minutes=1e-9"]
    out = tmp_path / "run"
    _train_and_stop(out, 5, *options)
    steps = sorted(path.name for path in (out / "checkpoints").glob("step_*"))
    assert steps == ["step_00000004", "step_00000005"]
    state = out / "checkpoints" / "step_00000005" / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    train_toy(out, *options, resume="auto")
    assert (
        "is damaged: its SHA-256 is not the manifest's; using the checkpoint before it"
        in capsys.readouterr().err
    )
    assert losses(out) == losses(finished)


def test_f24_when_all_checkpoints_are_damaged_nothing_is_trained(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_toy(out, "schedule={steps: 1}")
    (out / "checkpoints" / "step_00000001" / "state.pt").write_bytes(b"")
    with pytest.raises(InputError, match="E273 every checkpoint"):
        train_toy(out, "schedule={steps: 2}", resume="auto")


def test_a_new_run_can_start_from_another_ones_checkpoint(finished: Path, tmp_path: Path) -> None:
    options = ["training.ema_decay=0.9", "training.clip_grad_norm=5.0"]
    result = train_toy(tmp_path / "run", *options, "schedule.steps=7", resume=str(finished))
    assert result.step == 7
    assert list(losses(tmp_path / "run")) == [7]


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="E101"):
        train_toy(tmp_path / "run", "training.batch_size=3", "training.accumulate=2")


def test_accumulation_takes_as_many_steps_over_the_same_clips(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", "training.batch_size=4", "training.accumulate=2", "schedule={steps: 2}")
    assert list(losses(tmp_path / "run")) == [1, 2]


def test_rows_after_the_resumed_step_are_forgotten_and_a_torn_line_too(tmp_path: Path) -> None:
    rows = [{"step": step, "split": "train"} for step in (1, 2, 3)]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "spl'
    (tmp_path / "metrics.jsonl").write_text(text)
    forget_rows_after(tmp_path, 2)
    assert read_rows(tmp_path) == rows[:2]
