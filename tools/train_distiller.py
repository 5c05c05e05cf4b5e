"""Train the distiller that ships with limbeck: stage 1, on tasks of every kind that the language model itself saw.

The language model was trained on tasks of the atlas, example after example. Here the first 6 to 20 examples of a task
are the demonstrations and 8 more are the queries, all behind one pass over the demonstrations. The loss is MEND's
distillation loss on the answers. As with the language model, looking up what was seen before comes first: some episodes
are recall of unrelated pairs, or classifications of a few names again and again (``train_lm.examples``).

No held-out task (``tasks.is_held_out``) occurs, so nobody has seen the tasks that the partitions are judged on; which
kinds of task a partition may *learn* from is a matter of stage 2.

``python tools/train_distiller.py --out folder`` writes ``folder/distiller``; its ``quality.json`` has settings and
the loss on tasks that are held out. ``accelerate launch --cpu --num_processes 2 tools/train_distiller.py ...`` uses two
cores.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator

from limbeck.atlas import kinds, tasks
from limbeck.atlas.train_lm import fresh_labels, recall, seen
from limbeck.context.distiller import Distiller, open_distiller
from limbeck.context.host import load_llm
from limbeck.core.fit import fit
from limbeck.core.save import write_json
from limbeck.core.stage import Optim, Stage, freeze
from limbeck.core.terms import Clock, count
from limbeck.data.stream import Batches
from limbeck.data.tasks import Episode
from limbeck.data.templates import Example
from limbeck.methods.context import mend
from limbeck.objectives.tokens import hard, soft

# How often each kind of episode comes. Classification took the language model longest, and takes the distiller longest.
# "repeat": half of the queries are demonstrations again; "few": so are the demonstrations, of 3 to 8 names.
SHARES = {
    "class": 0.28,
    "repeat": 0.12,
    "few": 0.08,
    "recall": 0.06,
    "name": 0.14,
    "code": 0.09,
    "date": 0.10,
    "amount": 0.08,
    "number": 0.05,
}
BACKBONE = mend.LLM  # the distiller starts as a copy of the language model, which is of its own size here


class Drawn:
    """Endless episodes of tasks that are not held out; episode i depends on (seed, i) alone."""

    def __init__(self, seed: int, asked: int = 8) -> None:
        self.seed, self.asked = seed, asked

    def __getitem__(self, index: int) -> Episode:
        rng = Random(f"episode {self.seed} {index}")
        while True:
            (kind,) = rng.choices([*SHARES], [*SHARES.values()])
            found = draw(rng, kind, 16 if rng.random() < 0.5 else rng.randint(6, 20), self.asked)
            if len(found.queries) > 1:  # a few codes have not so many names
                return found


class HeldOut:
    """Endless episodes of held-out tasks of every kind in turn, to measure by."""

    def __getitem__(self, index: int) -> Episode:
        rng = Random(f"held out {index}")
        specs = _held_out(kinds.KINDS[index % len(kinds.KINDS)])
        while True:
            found = _episode(pairs(rng, rng.choice(specs), 24), 16)
            if len(found.queries) > 1:
                return found


def draw(rng: Random, kind: str, shots: int, asked: int) -> Episode:
    """An episode of one of the kinds in ``SHARES``."""
    if kind == "recall":
        found = recall(rng, shots)
        return _episode(found + rng.choices(found, k=asked), shots)
    if kind not in ("repeat", "few"):
        return _episode(pairs(rng, rng.choice(seen(kind)), shots + asked), shots)
    several = shots if kind == "repeat" else rng.randint(3, 8)
    found = pairs(rng, rng.choice(seen("class")), several + asked)
    known, new = found[:several], found[several:]
    demos = known if kind == "repeat" else rng.choices(known, k=shots)
    queries = [rng.choice(known if rng.random() < 0.5 or not new else new) for _ in range(asked)]
    return _episode(demos + queries, len(demos))


def pairs(rng: Random, spec: kinds.Spec, count: int) -> list[tuple[str, str]]:
    """Up to ``count`` distinct inputs and outputs; a classification's labels are new every time."""
    return [(x, y) for _, x, y in fresh_labels(rng, spec).pairs(rng, count)]


def _episode(found: list[tuple[str, str]], shots: int) -> Episode:
    rows = [Example("atlas", x, y) for x, y in found]
    return Episode(tuple(rows[:shots]), rows[min(shots, len(rows) - 1)], tuple(rows[shots + 1 :]))


@cache
def _held_out(kind: str) -> list[kinds.Spec]:
    return [spec for spec in tasks.specs() if spec.kind == kind and tasks.is_held_out(spec)]


def stream(distiller: Distiller, rows: Drawn | HeldOut, batch: int, seed: int = 0) -> Batches:
    """Batches of episodes of like length."""
    return Batches(rows, distiller.collate(), batch, seed, shuffle=False, size_of=_characters)


def _characters(episode: Episode) -> int:
    return sum(len(row.input) + len(row.output) for row in (*episode.demos, *episode.queries))


def train(args: argparse.Namespace) -> None:
    """Stage 1, its quality, its files in half precision."""
    lm, tokenizer = load_llm(BACKBONE)
    settings = {"length": args.length, "layout": "metaicl", "limit": 128, "budget": 640}
    distiller = open_distiller(args.start, lm, BACKBONE, tokenizer, **({} if args.start != BACKBONE else settings))
    engine = Accelerator(mixed_precision=args.precision)
    stage = Stage(
        "distiller",
        mend.mend_step(freeze(lm), distiller, soft(on="answer")),
        train={"distiller": distiller},
        stream=stream(distiller, Drawn(args.seed), args.batch, args.seed),
        steps=args.steps,
        optim=Optim(args.lr, "linear", warmup=20, betas=(0.9, 0.98)),
        frozen={"llm": lm},
        seed=args.seed,
        save_every=400,
    )
    fit(stage, args.out / "stages", engine)
    if engine.is_main_process:
        said = {key: value for key, value in vars(args).items() if key not in ("out", "start")}
        said["length"] = distiller.reading.length  # a distiller to go on from keeps its own
        write_json(args.out / "distiller" / "quality.json", {"settings": said, "held_out": measure(lm, distiller)})
        distiller.half().save_pretrained(args.out / "distiller")


@torch.no_grad()
def measure(lm: torch.nn.Module, distiller: Distiller) -> dict[str, float]:
    """Nats per token of answers of held-out tasks, 16 demonstrations: KL from the LM that reads them, cross-entropy."""
    distiller.eval()
    batches = stream(distiller, HeldOut(), 16).take(20)
    found = {}
    for name, goal in {"kl": soft(on="answer"), "cross_entropy": hard()}.items():
        step = mend.mend_step(lm, distiller, goal)
        terms = [next(iter(step(batch, Clock(0, 1)).values())) for batch in batches]
        found[name] = float(sum(term.sum for term in terms)) / sum(count(batch, "answer") for batch in batches)
    return found


def main() -> None:
    """Train it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", default=BACKBONE, help="a distiller to go on from; by default, the language model")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=12, help="sets of demonstrations per step and process")
    parser.add_argument("--lr", type=float, default=1.4e-3)
    parser.add_argument("--length", type=int, default=28, help="vectors")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args)


if __name__ == "__main__":
    main()
