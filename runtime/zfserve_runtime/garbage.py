"""Python's garbage collector, for the whole process. Called by the command modules of server and worker."""

import gc


def set_modules_aside() -> None:
    """Have the collector pass over what there is now, which are modules, and stay.

    To look through them holds up every thread, the event loop too: for 10 to 30 ms in the server, and for 100 in the
    worker, which has PyTorch. What comes after them takes a millisecond.
    """
    gc.freeze()
