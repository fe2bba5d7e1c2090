"""Where PyTorch computes; for training and for the worker."""

import torch


class NoSuchDevice(ValueError):
    """This machine has no such device; the message says what to choose."""


def choose_device(name: str) -> torch.device:
    """`name` as PyTorch has it, or "auto": a GPU where there is one.

    Raises:
        NoSuchDevice: there is none here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise NoSuchDevice(f"there is no device {name!r} here; choose cpu, cuda or auto") from error
    return device
