"""Stores written by processes of their own: ``teach_child.py OUT``.

``straight``: undisturbed; ``killed``: its writer was killed again and again in the middle of a file; ``pair``: written
by two processes, one of which was killed before. Each life is a fork, so that the libraries are imported once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

from accelerate import Accelerator
from toy_teacher import ToyTeacher, stream, tokenizer

from limbeck.core import save
from limbeck.data.store import teach as teaching

SHARD_TOKENS = 60


def live(out: Path, dies_at: int = 0, rank: int = 0, world: int = 1, port: int = 0) -> int:
    """Write a store in a process of its own, which is killed when half of the file number ``dies_at`` is written."""
    child = os.fork()
    if child:
        return child
    if world > 1:
        place = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
    if dies_at:
        whole, left = save.write_tensors, [dies_at]

        def half(path: Path, *rest: object) -> None:
            whole(path, *rest)  # type: ignore[arg-type]
            left[0] -= 1
            if not left[0]:
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        save.write_tensors = half  # type: ignore[assignment]
    teaching.SHARD_TOKENS = SHARD_TOKENS
    engine = Accelerator(cpu=True) if world > 1 else None
    teaching.teach(ToyTeacher(), stream(), tokenizer(), out, teaching.Keep(top=8), {"data": "toy"}, engine=engine)
    os._exit(0)


def ended(child: int) -> bool:
    """Whether a life ended by itself; False if it was killed."""
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"a life ended with status {status}"
    return status == 0


def main(out: Path) -> None:
    """Write the three stores; prints how often the second one's writer was killed."""
    assert ended(live(out / "straight"))
    kills = 0
    while not ended(live(out / "killed", dies_at=2)):  # one file of each life stands
        kills += 1
        assert kills < 50
    assert not ended(live(out / "pair", dies_at=3))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    both = [live(out / "pair", 0, rank, 2, port) for rank in range(2)]
    assert [ended(child) for child in both] == [True, True]
    print(json.dumps(kills))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
