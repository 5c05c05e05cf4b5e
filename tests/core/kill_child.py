"""Train the controlled toy, killed ten times: ``kill_child.py OUT STEPS`` prints the checkpoint found after each kill.

Each life is a fork of this process, so that the libraries are imported once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fit_child import controlled

from limbeck.core.checkpoint import Checkpoints
from limbeck.core.fit import fit
from limbeck.core.terms import Clock

KILLS = 10


def live(out: Path, steps: int, immortal: bool) -> int:
    """Start training in a process of its own and return its number."""
    child = os.fork()
    if child:
        return child

    def linger(logs: Mapping[str, float], clock: Clock) -> None:
        if clock.step == clock.steps and not immortal:
            time.sleep(600)  # a life that is to be killed does not end by itself

    stage, _ = controlled(steps, save_every=1 + os.getpid() % 2)
    fit(replace(stage, after=[*stage.after, linger]), out)
    os._exit(0)


def finish(child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a run ended with status {status}")


def wait_for_rows(path: Path, number: int) -> None:
    """Wait until the log has ``number`` rows."""
    deadline = time.monotonic() + 300
    while number and not (path.exists() and path.read_bytes().count(b"\n") >= number):
        assert time.monotonic() < deadline, f"no {number} rows in {path}"
        time.sleep(0.001)


def main(out: Path, steps: int) -> None:
    """One undisturbed run, which also says how long a run takes; then ten kills; then the end."""
    began = time.monotonic()
    finish(live(out / "straight", steps, immortal=True))
    one_step = (time.monotonic() - began) / steps
    chance, reached = random.Random(), []
    for kill in range(KILLS):
        child = live(out / "killed", steps, immortal=False)
        wait_for_rows(out / "killed" / "toy" / "metrics.jsonl", 3 * kill + chance.randint(0, 3))
        time.sleep(chance.uniform(0, 2) * one_step)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "a run ended before it was killed"
        newest = Checkpoints(out / "killed" / "toy").newest()
        reached.append(int(newest.name[5:]) if newest else 0)
    finish(live(out / "killed", steps, immortal=True))
    print(json.dumps(reached))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
