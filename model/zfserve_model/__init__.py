"""The networks as PyTorch modules, their deconvnet, weights in and out, and training."""
