"""`python -m zfserve_worker`."""

import sys

from zfserve_worker.worker_command import main

if __name__ == "__main__":
    sys.exit(main())
