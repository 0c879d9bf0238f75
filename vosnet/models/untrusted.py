"""Loads pickled checkpoints: tensors and plain containers only, never code."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch

from vosnet.errors import InputError


def load_pickled_tensors(path: Path) -> Any:
    """What a pickled torch file holds, on the CPU, without executing anything in it.

    Besides tensors and plain containers only `argparse.Namespace` is allowed: published checkpoints hold
    their command line in one, and it has no behavior of its own.

    Raises:
        InputError: the file holds other objects (E272), or is no torch file or is cut short (E271).
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "Unsupported global" in reason or "Unsupported class" in reason or "GLOBAL" in reason:
            name = reason.split("GLOBAL ", 1)[-1].split(" ", 1)[0]
            message = f"{path} holds a Python object ({name}), which is never executed here"
            hint = "Save its tensors alone, as safetensors, where you trust the file."
            raise InputError("E272", message, hint) from error
        raise _unreadable(path, error) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error  # what damaged bytes raise


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
    message = f"{path} is no readable torch checkpoint, or it is cut short or damaged ({reason})"
    return InputError("E271", message, "Copy or download it again.")
