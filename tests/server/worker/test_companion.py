"""The server starts its worker with its own settings."""

from zfserve_server.config import ServerConfig
from zfserve_server.worker.companion import worker_command


def test_the_worker_gets_the_model_folders_of_the_server() -> None:
    config = ServerConfig.model_validate({"model": "models/fake,elsewhere/other/7"})
    command = worker_command(config, "unix:/somewhere")
    assert command[1:] == [
        *("-m", "zfserve_worker", "--model", "models/fake", "--model", "elsewhere/other/7", "--spare-networks", "0"),
        *("--drain-delay", "0", "--listen", "unix:/somewhere", "--device", "cpu", "--log-format", "console"),
        "--exit-with-parent",
    ]
