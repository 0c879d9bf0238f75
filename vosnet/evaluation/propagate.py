"""Propagate every sequence of a data set, and write the masks that are asked for in its layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vosnet.errors import InputError, VosnetError
from vosnet.evaluation.benchmark import Benchmark
from vosnet.export.folder import ResultFolder
from vosnet.files import inside
from vosnet.masks import write_mask
from vosnet.progress import Progress
from vosnet.video import open_video

if TYPE_CHECKING:
    from vosnet.export.adapted import BenchmarkAdapter
    from vosnet.propagation import Propagator


def propagate_benchmark(
    propagator: Propagator | None,
    benchmark: Benchmark,
    names: Sequence[str],
    folder: ResultFolder,
    progress: Progress,
    adapter: BenchmarkAdapter | None = None,
) -> dict[str, str]:
    """Propagate the sequences `names`, each from the masks a method may see; `<seq>/<frame>.png` in `folder`.

    A sequence whose masks are all there (from an interrupted run) is left as it is.

    Args:
        propagator: None where `adapter` starts from masks on disk.
        benchmark: the data set.
        names: sequences to do.
        folder: where masks go.
        progress: counts frames.
        adapter: adapts each sequence online after its propagation.

    Returns:
        What went wrong, by sequence; the others are complete.
    """
    failures: dict[str, str] = {}
    for name in names:
        count = len(benchmark.frames(name))
        if is_complete(benchmark, name, folder):
            progress.advance(count)
            continue
        try:
            if adapter is not None:
                adapter.run(propagator, benchmark, name, folder)
                progress.advance(count)
            else:
                assert propagator is not None
                propagate_sequence(propagator, benchmark, name, folder, progress)
        except VosnetError as error:
            failures[name] = str(error)
    return failures


def is_complete(benchmark: Benchmark, name: str, folder: ResultFolder) -> bool:
    """Whether every mask that is asked for lies in `folder`."""
    there = inside(folder.root, name)
    return all((there / f"{stem}.png").is_file() for stem in benchmark.asked(name))


def propagate_sequence(
    propagator: Propagator, benchmark: Benchmark, name: str, folder: ResultFolder, progress: Progress
) -> None:
    """Propagate one sequence; objects that appear later join at their first frame.

    Raises:
        InputError: the reader sees other frames than the data set.
        VosnetError: what propagation raises.
    """
    stems = [path.stem for path in benchmark.frames(name)]
    asked = set(benchmark.asked(name))
    with open_video(benchmark.frames(name)[0].parent) as reader:
        if list(reader.names) != stems:
            raise InputError("E237", f"{reader.path}: {len(reader.names)} readable frames, not {len(stems)}")
        masks = {stems.index(stem): mask for stem, mask in benchmark.given(name).items()}
        done = 0
        for result in propagator.propagate(reader, masks):
            if stems[result.index] in asked:
                write_mask(folder.path(f"{name}/{stems[result.index]}.png"), result.mask)
            progress.advance()
            done += 1
        progress.advance(len(stems) - done)  # frames before the first mask have no answer
