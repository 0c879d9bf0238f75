"""Small training videos on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.frame_folders import write_frames


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Six frame folders of 12 frames."""
    root = tmp_path / "videos"
    for i in range(6):
        write_frames(root / f"video{i}", 12, seed=i)
    return root
