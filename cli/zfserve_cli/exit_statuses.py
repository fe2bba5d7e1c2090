"""Defines the exit statuses of every command. `zfserve --help` prints them, and docs/errors.md explains them."""

OK, FAILED, UNUSABLE, ENGINE_LOST, NOT_INSTALLED, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

MEANINGS = {
    OK: "done",
    FAILED: "some or all of it failed",
    UNUSABLE: "the arguments or the input cannot be used",
    ENGINE_LOST: "serve and worker: the engine or the GPU was lost; start the process again",
    NOT_INSTALLED: "a library that the command needs is not installed",
    UNREACHABLE: "no server answers, or the server is too busy",
    INTERRUPTED: "interrupted",
}
