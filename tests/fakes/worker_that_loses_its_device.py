"""Runs the worker with a device that is lost at a white photo, as a GPU is after an illegal access.

Run as a program, in a process of its own.
"""

import sys

import torch
from torch import Tensor
from zfserve_model import chain_deconvnet as deconvnet
from zfserve_model.networks import Network
from zfserve_worker import projector
from zfserve_worker.worker_command import main


def fragile_trace(network: Network, image: Tensor) -> deconvnet.Trace:
    if image.min() > 2:  # only a white photo is that bright after normalisation
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    return deconvnet.trace(network, image)


if __name__ == "__main__":
    vars(projector)["trace"] = fragile_trace
    sys.exit(main())
