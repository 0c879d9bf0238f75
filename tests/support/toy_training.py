"""A training run small enough for a test: generated clips, a shallow encoder, crops of 32 pixels."""

from pathlib import Path
from unittest import mock

import torch

from vosnet.recipe import LoadedRecipe, parse_recipe
from vosnet.training.journal import read_rows
from vosnet.training.train import RunOptions, RunResult, train

torch.set_num_threads(1)  # two threads on two busy cores wait for each other most of the time

TOY = """\
title: toy
seed: 3
encoder:
  layer: layer2
objective:
  name: dense_correspondence
  hidden_dim: 16
  embedding_dim: 8
  grid_size: 2
  cross_view_grid_size: 2
data:
  sources:
    - layout: generated
      count: 5
      num_frames: 4
      size: [48, 64]
  clip_len: 2
  frame_gap: 1
  crop_size: 32
  short_side: [32, 49]
  cache_mb: 10
optimizer:
  lr: 1e-3
  weight_decay: 5e-4
  bias_lr_factor: 2
schedule:
  steps: 6
  decay: cosine
  warmup_steps: 2
training:
  batch_size: 2
  workers: 0
  log_steps: 1
  save_minutes: 60
"""


def toy_recipe(*overrides: str) -> LoadedRecipe:
    return parse_recipe(TOY, overrides, "toy.yaml")


def train_toy(out: Path, *overrides: str, resume: str = "never", overwrite: bool = False) -> RunResult:
    options = RunOptions(out, resume=resume, overwrite=overwrite, device="cpu", progress="quiet")
    with mock.patch("vosnet.training.train.draw_curves"):  # seconds per picture; tested by itself
        return train(toy_recipe(*overrides), options)


def losses(out: Path) -> dict[int, float]:
    """Loss of every step in the run's journal."""
    return {row["step"]: row["loss"] for row in read_rows(out) if row["split"] == "train"}
