#!/bin/sh
# Removes files from a virtual environment that no program needs at run time: the libraries' tests, PyTorch's C++ headers
# and its test programs. The Dockerfile calls it.
#
#   slim_environment.sh FOLDER
set -eu
site=$(echo "$1"/lib/python3*/site-packages)
find "$site" -type d -name tests -prune -exec rm -rf {} +
torch=$site/torch
if [ -d "$torch" ]; then
    rm -rf "$torch/include" "$torch/share" "$torch/test"
    # `import torch` requires this program.
    find "$torch/bin" -mindepth 1 -maxdepth 1 ! -name torch_shm_manager -exec rm -rf {} +
fi
