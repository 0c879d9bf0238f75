"""Entry point of every command: the table of commands, exit codes, and errors as one line."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from vosnet.errors import OutOfMemoryError, VosnetError
from vosnet.files import storage_error
from vosnet.options import parse_assignments

COMMANDS = {
    "propagate": "carry first-frame masks through a video",
    "evaluate": "measure J and F of results or of a checkpoint",
    "train": "train an encoder from raw video with a recipe",
    "prepare": "index a data set once, so that training starts at once",
    "demo": "train, propagate and evaluate on generated video, in about a minute",
    "recipes": "list, show, copy, validate and compare recipes",
    "doctor": "report versions, codecs and hardware, and what would not work on this machine",
}
EXIT_CODES = """\
exit codes: 0 ok, 1 unexpected error, 2 usage or recipe, 3 some inputs failed, 4 input unreadable or
mismatched, 5 out of memory, 6 disk full or not writable, 7 training diverged, 8 run folder locked,
130 interrupted, 143 terminated"""


class Terminated(BaseException):
    """SIGTERM arrived; unwinds like KeyboardInterrupt so that temporary files are removed."""


def make_parser(name: str, description: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """A parser whose help ends with runnable examples and the exit codes.

    Args:
        name: the sub-command, such as "propagate".
        description: one or two sentences on what it does.
        examples: command lines without the program name, such as "--video clip.mp4 --mask first.png".
    """
    import vosnet

    lines = "\n".join(f"  python tools/{name}.py {example}" for example in examples)
    parser = argparse.ArgumentParser(
        prog=f"vosnet {name}",
        description=description,
        epilog=f"examples:\n{lines}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vosnet {vosnet.__version__}")
    return parser


def add_method_options(method: argparse._ArgumentGroup, output: argparse._ArgumentGroup) -> None:
    """The options behind `adaptation` and `existing` of `MethodOptions`."""
    method.add_argument("--adapt", action="store_true", help="a U-Net trained on them makes the final masks")
    argument: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "metavar": "KEY=VALUE"}
    method.add_argument("--adapt-set", help="override a setting of --adapt", **argument)
    output.add_argument("--overwrite", action="store_true", help="replace an earlier result in --out")
    output.add_argument("--resume", action="store_true", help="continue an interrupted result in --out")


def method_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """`adaptation` and `existing` of `MethodOptions`."""
    existing = "overwrite" if arguments.overwrite else "resume" if arguments.resume else "refuse"
    if not arguments.adapt:
        return {"existing": existing}
    from vosnet.adaptation.settings import make_settings

    return {"existing": existing, "adaptation": make_settings(**parse_assignments(arguments.adapt_set))}


def printer(*, to_stderr: bool) -> Callable[[str], None]:
    """Prints a line at once: to stderr where stdout is for JSON."""
    return functools.partial(print, file=sys.stderr if to_stderr else sys.stdout, flush=True)


def run(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Call `command` and turn what it raises into a message on stderr and an exit code.

    Expected errors print one line. An unexpected one writes its traceback to a file and prints that path.
    """
    try:
        with _sigterm_unwinds():
            code = command(argv)
            sys.stdout.flush()
    except BaseException as error:  # the outermost frame: it decides how a command ends
        code = _report(error)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _leave_at_once(code)
    return code


def entry_point() -> NoReturn:
    """`vosnet COMMAND ...`, the console script."""
    sys.exit(run(_dispatch, sys.argv[1:]))


def _dispatch(argv: Sequence[str] | None) -> int:
    import vosnet

    parser = argparse.ArgumentParser(
        prog="vosnet",
        description="Self-supervised video object segmentation.",
        epilog="\n".join([*(f"  {name:10} {text}" for name, text in COMMANDS.items()), "", EXIT_CODES]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vosnet {vosnet.__version__}")
    parser.add_argument(
        "command", choices=sorted(COMMANDS), metavar="COMMAND", help="one of the commands below"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="`vosnet COMMAND --help` lists them")
    options = parser.parse_args(argv)
    main: Callable[[Sequence[str] | None], int] = importlib.import_module(
        f"vosnet.commands.{options.command}"
    ).main
    return main(options.arguments)


def _report(error: BaseException) -> int:
    if isinstance(error, SystemExit):  # argparse
        return error.code if isinstance(error.code, int) else 2
    if isinstance(error, KeyboardInterrupt):
        return _say("interrupted", 130)
    if isinstance(error, Terminated):
        return _say("terminated", 143)
    if isinstance(error, BrokenPipeError):  # the reader of our output went away, as `| head` does
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, VosnetError):
        return _say(str(error), error.exit_code)
    if _out_of_memory(error):
        hint = "Use a smaller input or fewer recent frames."
        return _say(
            str(OutOfMemoryError("E501", f"memory ran out: {error}", hint)), OutOfMemoryError.exit_code
        )
    translated = (
        storage_error(error, Path(error.filename or "output")) if isinstance(error, OSError) else None
    )
    if translated is not None and not isinstance(error, FileNotFoundError):
        return _say(str(translated), translated.exit_code)
    return _say(_unexpected(error), 1)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from vosnet.runtime import is_out_of_memory

    return is_out_of_memory(error)


def _leave_at_once(code: int) -> NoReturn:
    """End a rank of torchrun without the interpreter's own shutdown.

    Now and then a thread of torch's gloo aborts that shutdown ("terminate called without an active
    exception", seen with torch 2.13), and torchrun then stops the ranks that are still at work.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader may be gone
            stream.flush()
    os._exit(code)


def _unexpected(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="vosnet-error-", suffix=".log", delete=False) as log:
            log.write(text)
    except OSError:
        return f"unexpected {type(error).__name__}: {error}\n{text}"
    return f"E100 unexpected {type(error).__name__}: {error}. This is a bug; the traceback is in {log.name}"


def _say(message: str, code: int) -> int:
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed
        print(f"vosnet: {message}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    def raise_terminated(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        previous = signal.signal(signal.SIGTERM, raise_terminated)
    except ValueError:  # not the main thread: signals are the caller's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
