"""Every Python snippet of README and docs/ runs as it stands."""

from pathlib import Path

import pytest

from tests.support.documents import Block, blocks


@pytest.mark.parametrize("block", [pytest.param(b, id=b.place) for b in blocks("python")])
def test_every_snippet_runs(block: Block, workplace: Path) -> None:
    exec(compile(block.text, block.place, "exec"), {"__name__": "snippet"})
