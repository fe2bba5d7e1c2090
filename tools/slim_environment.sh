#!/bin/sh
# Takes out of a virtual environment what no program runs: libraries' own tests, PyTorch's C++ headers, its test programs.
# Called by the Dockerfile.
#
#   slim_environment.sh FOLDER
set -eu
site=$(echo "$1"/lib/python3*/site-packages)
find "$site" -type d -name tests -prune -exec rm -rf {} +
torch=$site/torch
if [ -d "$torch" ]; then
    rm -rf "$torch/include" "$torch/share" "$torch/test"
    # `import torch` insists on this one program.
    find "$torch/bin" -mindepth 1 -maxdepth 1 ! -name torch_shm_manager -exec rm -rf {} +
fi
