"""Rehearses the Job of `deploy/jobs/atlas` on one machine: processes are killed at random, and started again."""

import random
import subprocess
import sys
import time
from pathlib import Path

from fakes.atlas_service import AtlasService
from fakes.vision_service import listening

SHARDS = 2
KILLS = 4


def command(*arguments: object) -> list[str]:
    # A checkpoint after each batch: a process is killed after seconds, where a real one runs for hours.
    code = "import sys; from zfserve_studies.atlas import scan; scan.CHECKPOINT_BATCHES = 1; "
    code += "from zfserve_cli.main import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_shards_whose_processes_are_killed_merge_to_the_whole(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(320):
        (images / f"{number:03}.jpg").write_bytes(number.to_bytes(2, "big"))
    chance = random.Random(0)
    with listening(AtlasService()) as port:
        service = ("--address", f"127.0.0.1:{port}", "--images", images)
        options = ("--layer", "conv1", "--maps", "0-3")

        def finished(*arguments: object, kills: int = 0) -> None:
            """Runs one command, as a Job does: again and again until it succeeds."""
            for attempt in range(kills + 1):
                process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL)
                if attempt < kills:
                    time.sleep(chance.uniform(0.2, 1.5))
                    process.kill()
                    process.wait(timeout=60)
                else:
                    assert process.wait(timeout=120) == 0

        finished("atlas", *service, *options, "--output", tmp_path / "whole")
        shards = [tmp_path / f"shard{number}" for number in range(SHARDS)]
        for number, shard in enumerate(shards):
            finished("atlas", *service, *options, "--shard", f"{number}/{SHARDS}", "--output", shard, kills=KILLS)
        finished("atlas", "merge", *shards, *service, "--output", tmp_path / "merged", kills=KILLS)
    for name in ("atlas.json", "atlas.html", "page-001.png"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
