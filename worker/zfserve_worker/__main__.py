"""Starts the worker as `python -m zfserve_worker`, as the server does."""

import sys

from zfserve_worker.worker_command import main

if __name__ == "__main__":
    sys.exit(main())
