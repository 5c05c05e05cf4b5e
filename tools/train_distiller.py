"""Train the distiller that ships with limbeck: stage 1, on tasks of every kind that the language model itself saw.

The language model was trained on tasks of the atlas, example after example. Here the first 6 to 20 examples of a task
are the demonstrations and 8 further ones the queries, all behind one pass over the demonstrations. The loss is MEND's
distillation loss on the answers. No held-out task (``tasks.is_held_out``) occurs, so nobody has seen the tasks that the
partitions are judged on; which kinds of task a partition may *learn* from is a matter of stage 2.

``python tools/train_distiller.py --out folder`` writes ``folder/distiller``; its ``quality.json`` has settings and
the loss on tasks that are held out. ``accelerate launch --cpu --num_processes 2 tools/train_distiller.py ...`` uses two
cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator

from limbeck.atlas import tasks
from limbeck.atlas.kinds import Spec
from limbeck.atlas.train_lm import fresh_labels, seen
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

# How often each kind of task comes. Classification took the language model longest, and takes the distiller longest.
SHARES = {"class": 0.43, "name": 0.19, "code": 0.12, "date": 0.12, "amount": 0.09, "number": 0.05}
BACKBONE = mend.LLM  # the distiller starts as a copy of the language model, which is of its own size here


class Drawn:
    """Endless episodes of the atlas's tasks, held out or not; episode i depends on (seed, i) alone."""

    def __init__(self, seed: int, asked: int = 8, held_out: bool = False, shots: int | None = None) -> None:
        self.seed, self.asked, self.shots = seed, asked, shots
        self.specs = {kind: _held_out(kind) if held_out else seen(kind) for kind in SHARES}

    def __getitem__(self, index: int) -> Episode:
        rng = Random(f"episode {self.seed} {index}")
        while True:
            (kind,) = rng.choices([*SHARES], [*SHARES.values()])
            shots = self.shots or (16 if rng.random() < 0.5 else rng.randint(6, 20))
            spec = fresh_labels(rng, rng.choice(self.specs[kind]))
            rows = [Example(spec.name, x, y) for _, x, y in spec.pairs(rng, shots + self.asked)]
            if len(rows) >= shots + 2:  # a few codes have not so many names
                return Episode(tuple(rows[:shots]), rows[shots], tuple(rows[shots + 1 :]))


def _held_out(kind: str) -> list[Spec]:
    return [spec for spec in tasks.specs() if spec.kind == kind and tasks.is_held_out(spec)]


def stream(distiller: Distiller, rows: Drawn, batch: int, seed: int = 0) -> Batches:
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
        write_json(args.out / "distiller" / "quality.json", {"settings": said, "held_out": measure(lm, distiller)})
        distiller.half().save_pretrained(args.out / "distiller")


@torch.no_grad()
def measure(lm: torch.nn.Module, distiller: Distiller) -> dict[str, float]:
    """Nats per token of answers of held-out tasks, 16 demonstrations: KL from the LM that reads them, cross-entropy."""
    distiller.eval()
    batches = stream(distiller, Drawn(1, held_out=True, shots=16), 16).take(20)
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
