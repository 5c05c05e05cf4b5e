"""A divergence from hidden states, forward and backward: processor seconds and memory beside what else is in use.

Student and teacher of width 512 with output layers of their own, float32, random. The sides:

- ``limbeck``: ``losses.fused``, on the supervised positions.
- ``naive``: logits of all positions, log-softmax, ``torch.nn.functional.kl_div``, a mask.
- ``trl-gkd``: ``GKDTrainer.generalized_jsd_loss`` on logits of all positions.
- ``trl-chunked``: TRL's chunked divergence, as ``DistillationTrainer`` calls it.
- ``liger``: Liger's chunked JSD loss on flattened input, 128 positions per chunk, not compiled.

TRL and Liger take part if they are installed (``pip install trl liger-kernel``). Every measurement is a process of its
own, forked from one that has imported its library and computed nothing; the sides take turns case by case. ``seconds``
is processor time of all threads, the median over ``--runs`` calls; ``megabytes`` is what the process grew to over the
state just before the loss, with inputs and room for their gradients in place. ``gradient_error`` is the distance to
the gradient in float64 as a share of its norm, for inputs in float32 and in bfloat16.

    python benchmarks/divergence.py                                       # everything: hours
    python benchmarks/divergence.py --vocabulary 65536 --tokens 1024 --divergence jsd --threads 1 --runs 3

Results go to ``benchmarks/results/divergence.json``; a shorter run renews its own cases and keeps the others.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

WIDTH = 512
BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
NEEDS = {"limbeck": "limbeck", "naive": "torch", "trl-gkd": "trl", "trl-chunked": "trl", "liger": "liger_kernel"}
GRID = {
    "tokens": (512, 1024),
    "supervised": (1.0, 0.25),
    "vocabulary": (32_768, 65_536, 151_936),
    "divergence": tuple(BETA),
    "threads": (1, 2),
}
HEADLINE = {"tokens": 1024, "supervised": 1.0, "vocabulary": 65_536, "divergence": "jsd", "threads": 1}
RESULT = Path(__file__).parent / "results" / "divergence.json"
Case = dict[str, Any]


class Inputs:
    """States and output layers b = 1, n, d and the positions that count: the last ones."""

    def __init__(self, case: Case, kind: str = "float32") -> None:
        import torch

        dtype, tokens, size = getattr(torch, kind), case["tokens"], case["vocabulary"]
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, generator=generator)
        self.weight, self.teacher_weight = (
            draw(size, WIDTH).mul_(case.get("spread", 0.02)).to(dtype) for _ in range(2)
        )
        self.hidden, self.teacher_hidden = (draw(1, tokens, WIDTH).to(dtype) for _ in range(2))
        self.count = round(tokens * case["supervised"])
        self.mask = (torch.arange(tokens) >= tokens - self.count)[None]
        self.labels = torch.randint(size, (1, tokens), generator=generator).masked_fill(~self.mask, -100)
        self.beta, self.divergence = BETA[case["divergence"]], case["divergence"]
        for leaf in (self.hidden, self.weight):
            leaf.requires_grad_()
            leaf.grad = torch.ones_like(leaf).sub_(1)  # there, and not only promised by the system


def limbeck(x: Inputs) -> Any:
    from limbeck.losses import divergence
    from limbeck.losses.fused import fused
    from limbeck.losses.heads import Head

    student, teacher = Head(x.hidden[x.mask], x.weight), Head(x.teacher_hidden[x.mask], x.teacher_weight)
    return fused(getattr(divergence, x.divergence), student, teacher).sum() / x.count


def naive(x: Inputs) -> Any:
    import torch
    from torch.nn.functional import kl_div, linear, log_softmax

    q = log_softmax(linear(x.hidden, x.weight).to(torch.promote_types(x.weight.dtype, torch.float32)), -1)
    with torch.no_grad():
        p = log_softmax(linear(x.teacher_hidden, x.teacher_weight).to(q.dtype), -1)
    kl = partial(kl_div, reduction="none", log_target=True)
    if x.beta in (0, 1):
        values = kl(p, q) if x.beta else kl(q, p)
    else:
        shares = torch.tensor([1 - x.beta, x.beta], dtype=q.dtype).log()
        m = torch.logaddexp(q + shares[0], p + shares[1])
        values = x.beta * kl(m, p) + (1 - x.beta) * kl(m, q)
    return values.sum(-1)[x.mask].sum() / x.count


def trl_gkd(x: Inputs) -> Any:
    import torch
    from torch.nn.functional import linear
    from trl.experimental.gkd import GKDTrainer

    logits = linear(x.hidden, x.weight)
    with torch.no_grad():
        teacher = linear(x.teacher_hidden, x.teacher_weight)
    return GKDTrainer.generalized_jsd_loss(logits, teacher, x.labels, x.beta, num_items_in_batch=x.count)


def trl_chunked(x: Inputs) -> Any:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    sides = x.hidden, x.teacher_hidden, x.weight, x.teacher_weight
    return _chunked_divergence_loss(*sides, x.mask, x.beta, num_items_in_batch=x.count)[0]


def liger(x: Inputs) -> Any:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    settings = {"weight_hard_loss": 0.0, "weight_soft_loss": 1.0, "compiled": False, "chunk_size": 128}
    loss = LigerFusedLinearJSDLoss(beta=x.beta, **settings)
    return loss(x.hidden[0], x.weight, x.teacher_hidden[0], x.teacher_weight, x.labels[0])


SIDES: dict[str, Callable[[Inputs], Any]] = {
    "limbeck": limbeck,
    "naive": naive,
    "trl-gkd": trl_gkd,
    "trl-chunked": trl_chunked,
    "liger": liger,
}


def resident(field: str) -> int:
    """Bytes of this process now (``VmRSS``) or at most since the mark was set back (``VmHWM``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads /proc/self/status, which is there on Linux only")


def cost(side: str, case: Case) -> dict[str, float]:
    """Seconds, megabytes and the loss of one case."""
    import torch

    torch.set_num_threads(case["threads"])
    SIDES[side](Inputs({**case, "tokens": 8, "vocabulary": 1000})).backward()  # libraries set themselves up
    inputs, seconds = Inputs(case), []
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    for _ in range(case["runs"]):
        start = time.process_time()
        loss = SIDES[side](inputs)
        loss.backward()
        seconds.append(time.process_time() - start)
    return {
        "seconds": round(median(seconds), 3),
        "megabytes": round((resident("VmHWM") - before) / 2**20),
        "loss": loss.item(),
    }


def error(side: str, case: Case) -> dict[str, float]:
    """Distance of the gradients to those in float64 from the same inputs, as a share of their norm."""
    import torch

    torch.set_num_threads(1)
    inputs, exact = Inputs(case, case["dtype"]), Inputs(case, case["dtype"])
    for name in ("hidden", "weight", "teacher_hidden", "teacher_weight"):
        tensor = getattr(exact, name)
        setattr(exact, name, tensor.detach().double().requires_grad_(tensor.requires_grad))
    SIDES[side](inputs).backward()
    naive(exact).backward()
    pairs = {name: (getattr(inputs, name).grad.double(), getattr(exact, name).grad) for name in ("hidden", "weight")}
    return {name: float((ours - right).norm() / right.norm()) for name, (ours, right) in pairs.items()}


def serve(side: str) -> None:
    """Answer cases, one per line, each in a process forked for it."""
    importlib.import_module("limbeck.losses.fused")
    if side.startswith("trl"):
        importlib.import_module("trl.experimental.gkd")
        importlib.import_module("trl.trainer.distillation_trainer")
    if side == "liger":
        importlib.import_module("liger_kernel.chunked_loss")
    for line in sys.stdin:
        case, (reader, writer) = json.loads(line), os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, json.dumps((error if "dtype" in case else cost)(side, case)).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            print(answer.read() or "null", flush=True)
        os.waitpid(child, 0)


class Side:
    """A process that has imported one library and forks for every case."""

    def __init__(self, name: str) -> None:
        settings = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        settings |= {"OMP_WAIT_POLICY": "passive"}  # waiting is not work
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings,
        )

    def ask(self, case: Case) -> dict[str, float] | None:
        """What it says about ``case``; None if the process died of it, of memory most likely."""
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(case), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def measured(case: Case, sides: dict[str, Side], runs: int) -> Case:
    """One case by all sides, and limbeck beside each of them."""
    found = {name: side.ask({**case, "runs": runs}) for name, side in sides.items()}
    said = {name: row for name, row in found.items() if row}
    losses = [row["loss"] for row in said.values()]
    beside = {
        name: {key: round(said["limbeck"][key] / row[key], 3) for key in ("seconds", "megabytes")}
        for name, row in said.items()
        if name != "limbeck" and "limbeck" in said
    }
    spread = (max(losses) - min(losses)) / max(losses)
    return {**case, "runs": runs, "losses_apart": spread, "sides": found, "limbeck_beside": beside}


def errors(sides: dict[str, Side]) -> list[Case]:
    """The distance of every side's gradients to float64, where distributions are flat and where they are peaked."""
    rows = []
    for kind, divergence, spread in product(("float32", "bfloat16"), BETA, (0.02, 0.15)):
        case = {"tokens": 64, "supervised": 1.0, "vocabulary": 32_768, "divergence": divergence, "spread": spread}
        found = {name: side.ask({**case, "dtype": kind}) for name, side in sides.items()}
        rows.append({**case, "dtype": kind, "sides": found})
        print(
            kind, divergence, spread, {name: f"{row['weight']:.1e}" for name, row in found.items() if row}, flush=True
        )
    return rows


def targets(rows: list[Case]) -> dict[str, bool]:
    """What was to be reached, at the headline case."""
    row = next((row for row in rows if all(row[key] == value for key, value in HEADLINE.items())), None)
    if row is None or not row["sides"]["limbeck"]:
        return {}
    ours, beside = row["sides"]["limbeck"], row["limbeck_beside"]
    return {
        "under 465 MB and 5.8 s, the prototype's": ours["megabytes"] < 465 and ours["seconds"] < 5.8,
        "at most 0.10x the peak of trl-gkd": beside.get("trl-gkd", {}).get("megabytes", 9) <= 0.10,
        "at most 0.55x the time of trl-gkd": beside.get("trl-gkd", {}).get("seconds", 9) <= 0.55,
        "at most 0.4x the time of trl-chunked": beside.get("trl-chunked", {}).get("seconds", 9) <= 0.4,
    }


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """The part of the grid that was asked for."""
    for values in product(*(getattr(args, name) or choices for name, choices in GRID.items())):
        yield dict(zip(GRID, values, strict=True))


def installed(name: str) -> str | None:
    try:
        return version(name.replace("_", "-"))
    except PackageNotFoundError:
        return None


def main() -> None:
    """Ask every side about every case, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, choices in GRID.items():
        parser.add_argument(f"--{name}", type=type(choices[0]), nargs="*", choices=choices)
    parser.add_argument("--side", nargs="*", choices=SIDES, default=list(SIDES))
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--errors", action="store_true", help="the gradients' errors only")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    sides = {}
    for name in args.side:
        if importlib.util.find_spec(NEEDS[name]):
            sides[name] = Side(name)
        else:
            print(f"{name}: left out, because {NEEDS[name]} is not installed")
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    rows = {key_of(row): row for row in before.get("cases", [])}
    for case in () if args.errors else cases(args):
        row = rows[key_of(case)] = measured(case, sides, args.runs)
        print(
            *case.values(), {name: said and (said["seconds"], said["megabytes"]) for name, said in row["sides"].items()}
        )
        write(args.out, {**before, "cases": list(rows.values())})
    if args.errors or not before.get("gradient_error"):
        before["gradient_error"] = errors(sides)
    write(args.out, {**before, "cases": list(rows.values())})
    for aim, holds in targets(list(rows.values())).items():
        print(f"{'holds' if holds else 'FAILS'}: {aim}")
    return None


def key_of(case: Case) -> tuple[Any, ...]:
    return tuple(case[name] for name in GRID)


def write(path: Path, found: dict[str, Any]) -> None:
    """The results so far, in the order of the grid."""
    found["cases"] = sorted(found["cases"], key=lambda row: [GRID[name].index(row[name]) for name in GRID])
    packages = {name: installed(name) for name in ("torch", "trl", "liger_kernel")}
    found |= {"width": WIDTH, "on": {**packages, "machine": platform.machine()}, "targets": targets(found["cases"])}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
