"""What mask encoder and decoder are worth when the pseudo masks are exact: generated clips, an occlusion.

    python -m tests.support.exact_masks [--steps 600] [--out FOLDER]

Trains a shallow encoder together with V and D on random scenes, then propagates the first mask of scenes that
it has not seen, through the frames where object 1 passes in front of object 2 and out again. Prints the mean
region similarity behind the occlusion for each number of rounds, with copied masks in memory and with
answers; 0 rounds are plain label copy with the same encoder.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vosnet.metrics import region_similarity
from vosnet.models import Encoder, build_encoder, save_encoder
from vosnet.objectives.segmentation_term import SegmentationSettings, SegmentationTerm
from vosnet.objectives.settings import settings_from
from vosnet.propagation import Propagator
from vosnet.synthetic import SyntheticClip, make_clip
from vosnet.transforms import normalize_images

SIZE, LENGTH, BEHIND = (64, 112), 30, range(21, 30)  # the objects cross around frame 16
ROUNDS = (0, 1, 2, 3, 5)


def batch(clips: list[SyntheticClip], rng: np.random.Generator, count: int = 8) -> tuple[Tensor, Tensor]:
    """Three frames of some clips, [B, 3, 3, H, W], and exact labels on a quarter of them, [B, 3, h, w]."""
    frames, labels = [], []
    for index in rng.integers(len(clips), size=count):
        chosen = rng.choice(LENGTH, size=3, replace=False)
        frames.append(clips[index].frames[chosen])
        labels.append(clips[index].masks[chosen][:, 2::4, 2::4])
    images = torch.from_numpy(np.stack(frames)).permute(0, 1, 4, 2, 3)
    return normalize_images(images), torch.from_numpy(np.stack(labels)).long()


def train(steps: int, rollout: str, seed: int = 0) -> tuple[Encoder, SegmentationTerm]:
    """Encoder and term after so many steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    encoder = build_encoder(layer="layer2", seed=seed)
    sizes = {"width": 16, "depth": 1, "mask_dim": 32, "hidden_dim": 32}
    like_test = {"rollout": rollout, "k": 10, "residual": True}
    own = {"num_objects": 2, "rounds": 2, "coarse_weight": 0.5, **sizes, **like_test}
    keys = {"clustering": {"num_clusters": 3}, "mask_embedding": own}
    term = SegmentationTerm(8, settings_from(SegmentationSettings, keys))
    clips = [make_clip(i, num_frames=LENGTH, size=SIZE, num_objects=2, num_distractors=1) for i in range(40)]
    optimizer = torch.optim.Adam([*encoder.parameters(), *term.parameters()], lr=1e-3)
    began = time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - 0.95 * step / steps)
        frames, labels = batch(clips, rng)
        features = encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        draws = torch.from_numpy(rng.random((len(frames), 4), np.float32))
        loss, terms = term.loss(features, frames, labels, draws)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            values = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
            print(f"{time.process_time() - began:.0f} s, step {step}: {values}", flush=True)
    return encoder.eval(), term.eval()


def behind_occlusion(path: Path, rounds: int, memory_values: str, scenes: range) -> float:
    """Mean region similarity of both objects behind the occlusion."""
    propagator = Propagator.from_checkpoint(
        path, "unified", "cpu", rounds=rounds, memory_values=memory_values
    )
    scores = []
    for seed in scenes:
        clip = make_clip(seed, num_frames=LENGTH, size=SIZE, num_objects=2, num_distractors=1)
        results = propagator.propagate(clip.frames, {0: clip.masks[0]})
        for result, true in zip(results, clip.masks, strict=True):
            if result.index in BEHIND:
                scores += [region_similarity(result.mask == i, true == i) for i in (1, 2)]
    return float(np.mean(scores))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rollout", choices=("copied", "decoded"), default="decoded")
    parser.add_argument("--out", type=Path, default=Path("exact_masks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder, term = train(options.steps, options.rollout)
    options.out.mkdir(exist_ok=True)
    path = options.out / "model.safetensors"
    save_encoder(path, encoder, {"preset": "unified"}, half=False, segmenter=term.segmenter)
    print(f"weights in {path}")
    for memory_values in ("copied", "soft"):
        for rounds in ROUNDS:
            score = behind_occlusion(path, rounds, memory_values, range(1000, 1008))
            print(f"memory {memory_values}, rounds {rounds}: J {score:.3f}", flush=True)
