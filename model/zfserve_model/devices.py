"""This module chooses the device that PyTorch computes on. Training and the worker call it."""

import torch


class NoSuchDevice(ValueError):
    """This machine has no such device. The message says what to choose."""


def choose_device(name: str) -> torch.device:
    """Returns the device with PyTorch's `name`. "auto" means a GPU if there is one, otherwise the CPU.

    Raises:
        NoSuchDevice: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise NoSuchDevice(f"there is no device {name!r} here; choose cpu, cuda or auto") from error
    return device
