"""A script on two processes over gloo, as torchrun would start it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_twice(script: Path, *words: object) -> None:
    """Run ``script`` with ``words`` as both ranks, to the end; what they said is shown if one of them fails."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    shared["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # the child finds what the tests find
    both = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, words)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
