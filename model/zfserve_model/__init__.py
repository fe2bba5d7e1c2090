"""This room holds the networks as PyTorch modules, their deconvnet, the files of weights, and training."""
