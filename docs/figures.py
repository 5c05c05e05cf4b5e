"""The page ``docs/benchmarks.md``: what ``benchmarks/results/*.json`` say, in a few tables; see ``docs/make.py``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Table = Callable[[tuple[str, ...], list[tuple[str, ...]]], str]
SIDES = ("limbeck", "naive", "trl-gkd", "trl-chunked", "liger")
NOTE = (
    "Seconds are processor time, megabytes what a process grew to over its state just before; all sides of a table "
    "were measured in one run, turn by turn. The machine is a small one that other work shares, so trust ratios."
)


def benchmarks_page(results: Path, table: Table) -> str:
    """Every benchmark that has results, the targets it had and whether they were met."""
    parts = ["# Benchmarks", NOTE]
    for name, (title, tell) in PARTS.items():
        if (path := results / f"{name}.json").exists():
            said = json.loads(path.read_text(encoding="utf-8"))
            parts += [f"## {title}", f"`benchmarks/{name}.py`", *tell(said, table)]
            parts += [_targets(said["targets"])] if isinstance(said.get("targets"), Mapping) else []
    return "\n\n".join(parts)


def divergence(said: Mapping[str, Any], table: Table) -> Iterator[str]:
    """Time and memory of every case, and how far gradients are from float64."""
    yield (
        "A divergence from hidden states and two output layers of width 512, forward and backward. `supervised` is the "
        "share of the positions that count: the others cost limbeck nothing."
    )
    cases = sorted(said["cases"], key=lambda c: (c["threads"], c["vocabulary"], c["tokens"], -c["supervised"]))
    rows = [
        (
            f"{case['divergence']}, {case['vocabulary']:,} tokens, {case['tokens']} positions",
            f"{case['supervised']:.0%}",
            str(case["threads"]),
            *(_cost(case["sides"].get(side)) for side in SIDES),
        )
        for case in cases
    ]
    yield table(("case", "supervised", "threads", *SIDES), rows)
    errors = [
        (
            f"{e['divergence']}, {e['dtype']}, weights of {e['spread']}",
            *(f"{max(e['sides'][side].values()):.1e}" if side in e["sides"] else "" for side in SIDES),
        )
        for e in said["gradient_error"]
    ]
    yield "Distance of the gradient to that in float64, as a share of its norm:"
    yield table(("inputs", *SIDES), errors)


def distill_step(said: Mapping[str, Any], table: Table) -> Iterator[str]:
    """Whole steps beside TRL's trainer and beside the floor."""
    sides, step = said["sides"], "{:.2f} s, {:,} MB"
    yield (
        f"A whole training step, {said['rows']} rows of {said['length']} tokens, half of them supervised, "
        f"{said['vocabulary']:,} tokens, JSD; the losses of {said['steps']} steps are {said['losses_apart']:.0e} apart."
    )
    rows = [
        (name, step.format(sides[key]["seconds"], sides[key]["megabytes"]))
        for name, key in (("limbeck", "limbeck"), ("TRL's GKDTrainer", "trl"))
        if key in sides
    ]
    rows.append(("the floor: both models, the same loss, the optimizer", f"{sides['floor']['seconds']:.2f} s"))
    yield table(("side", "a step"), rows)
    packed, padded = (sides[key]["seconds_per_1000_tokens"] for key in ("packed", "padded"))
    yield (
        f"{said['times_faster']:.1f} times as fast in {said['share_of_peak']:.2f} of the memory, and "
        f"{said['over_floor']:.3f} of the floor. On rows of very unequal length packing takes {packed:.2f} s per 1,000 "
        f"tokens, padding {padded:.2f} s."
    )


def store(said: Mapping[str, Any], table: Table) -> Iterator[str]:
    """Bytes and truth of stored teachers."""
    yield "What a stored teacher takes per supervised token, and the divergence from what it said to what is kept."
    for teacher, sides in said.items():
        if isinstance(sides, Mapping) and any(name.startswith("limbeck k=") for name in sides):
            rows = [
                (name, f"{s['bytes']:.0f}", f"{s['kl']:.3f}", f"{s['write']:,.0f}", f"{s['read']:,.0f}")
                for name, s in sides.items()
                if "bytes" in s and "kl" in s
            ]
            yield table((teacher, "bytes", "nats", "tokens written a second", "read"), rows)


def context(said: Mapping[str, Any], table: Table) -> Iterator[str]:
    """Vectors in place of demonstrations."""
    beside = said["MEND beside ICL"]
    yield f"{said['demonstration_tokens']} tokens of demonstrations as vectors, a query of {said['query_tokens']}."
    rows = [(name.replace("_", " "), f"{value:.2f}") for name, value in beside.items()]
    yield table(("MEND beside in-context learning", "ratio"), rows)


def vocabulary(said: Mapping[str, Any], table: Table) -> Iterator[str]:
    """Trimming a vocabulary."""
    model = said["model"]
    yield (
        f"Trimming {model['rows']:,} tokens to {model['kept']:,}: {said['limbeck']['seconds']:.1f} s and "
        f"{said['limbeck']['memory']:.2f} times the model's memory ({said['limbeck']['memory_checked']:.2f} with its "
        f"own check); {said['times_faster']:.0f} times as fast as lm-vocab-trimmer's way, "
        f"{said['times_faster_without_search']:.1f} times without its search in lists."
    )


def step(said: Mapping[str, Any], table: Table) -> Iterator[str]:
    """What ``fit`` adds to a bare loop."""
    yield "A step of `fit` beside a bare loop; the weights are the same to the last bit."
    columns = ("model", "tokens per row", "fit ms", "bare ms", "ratio")
    yield table(columns, [tuple(str(size[column]) for column in columns) for size in said["sizes"]])


def _cost(side: Mapping[str, Any] | None) -> str:
    return "" if side is None else f"{side['seconds']:.2f} s, {side['megabytes']:,} MB"


def _targets(targets: Mapping[str, Any]) -> str:
    return "Targets: " + "; ".join(f"{what}: {'met' if met else 'missed'}" for what, met in targets.items()) + "."


PARTS: dict[str, tuple[str, Callable[[Mapping[str, Any], Table], Iterator[str]]]] = {
    "divergence": ("Losses", divergence),
    "distill_step": ("A step of distillation", distill_step),
    "store": ("Stored teachers", store),
    "context": ("Contexts", context),
    "vocabulary": ("Vocabularies", vocabulary),
    "step": ("The training loop", step),
}
