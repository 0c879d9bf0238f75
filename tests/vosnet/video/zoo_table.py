"""Print the clip zoo's table: `python -m tests.vosnet.video.zoo_table`.

Wrong frames are counted over three ways of reading: in order, at random with one reader, and at random with a
fresh reader each time. The last column asks decord itself, in a process of its own: it may crash or hang.
"""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import av

from tests.support.zoo import ANIMALS, Animal, read_barcode
from vosnet.video import open_video

_RANDOM = 30
_ASK_DECORD = """
import sys, random
from tests.support.zoo import read_barcode
import decord
decord.logging.set_level(decord.logging.QUIET)
numbers = [int(n) for n in sys.argv[2].split(",")]
reader = decord.VideoReader(sys.argv[1], num_threads=1)
shown = lambda reader, i: read_barcode(reader[i].asnumpy()) if i < len(reader) else None
wrong = sum(shown(reader, i) != n for i, n in enumerate(numbers)) + max(0, len(reader) - len(numbers))
order = [random.Random(1).randrange(len(numbers)) for _ in range(30)]
wrong += sum(shown(reader, i) != numbers[i] for i in order)
wrong += sum(shown(decord.VideoReader(sys.argv[1], num_threads=1), i) != numbers[i] for i in order[:5])
print("count", len(reader), "wrong", wrong)
"""


def row(animal: Animal, folder: Path) -> list[str]:
    path = animal.make(folder / f"clip{animal.suffix}")
    numbers = animal.numbers
    reader = open_video(path)
    order = [random.Random(1).randrange(len(numbers)) for _ in range(_RANDOM)]
    asked = [(i, frame) for i, frame in enumerate(reader)]
    asked += [(i, reader[i]) for i in order]
    asked += [(i, open_video(path)[i]) for i in order[:5]]
    wrong = sum(i >= len(numbers) or read_barcode(frame) != numbers[i] for i, frame in asked)
    wrong += abs(len(reader) - len(numbers))
    with av.open(str(path)) as container:
        stored = container.format.name.split(",")[0]
    codec = f"{reader.info.codec} {reader.info.pixel_format}"
    return [
        animal.name,
        stored,
        codec,
        str(len(asked)),
        str(wrong),
        reader.decoder,
        ask_decord(path, numbers),
    ]


def ask_decord(path: Path, numbers: tuple[int, ...]) -> str:
    listed = ",".join(map(str, numbers))
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_DECORD, str(path), listed],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    return done.stdout.strip() if done.returncode == 0 else "error"


def main() -> None:
    logging.disable()
    print("| clip | container | codec | frames asked | wrong | reader used | decord alone |")
    print("|---|---|---|---|---|---|---|")
    for animal in ANIMALS:
        with tempfile.TemporaryDirectory() as folder:
            print("| " + " | ".join(row(animal, Path(folder))) + " |", flush=True)


if __name__ == "__main__":
    main()
