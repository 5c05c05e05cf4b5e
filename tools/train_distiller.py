"""Train the distillers that ship with limbeck: stage 1 of MEND on running text, with and without a teacher.

The text is of the sort that the language model itself was trained on: paragraphs in every locale, and pages of names,
codes, dates and numbers. So that stage 2 and the partitions stay honest, the pages hold no held-out task, no amount, no
classification and no locale with little text.

``python tools/train_distiller.py --out folder`` writes ``folder/distiller`` (the teacher's words, MEND) and
``folder/distiller-untaught`` (plain next-token loss, the HyperTuning baseline), both from the same start with the same
documents in the same order, and beside each ``quality.json``: settings and the loss on documents not trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator

from limbeck.atlas import corpora, kinds, tasks
from limbeck.atlas.names import LOW
from limbeck.atlas.train_lm import ANSWER, BETWEEN
from limbeck.context.distiller import Distiller, open_distiller
from limbeck.context.host import load_llm
from limbeck.context.streams import document_stream
from limbeck.core.save import write_json
from limbeck.core.terms import Clock, Terms, count
from limbeck.methods.context import mend

PAGES = ("name", "name", "code", "date", "number")  # how often each kind
BACKBONE = mend.LLM  # the distiller starts as a copy of the language model, which is of its own size here


def documents(count: int, seed: int) -> list[str]:
    """A quarter paragraphs, the rest pages of 14 to 20 lines' worth of one task."""
    rng = Random(f"documents {seed}")
    by_kind: dict[str, list[kinds.Spec]] = {}
    for spec in tasks.specs():
        if spec.kind in PAGES and not tasks.is_held_out(spec) and not tasks.places(spec) & set(LOW):
            by_kind.setdefault(spec.kind, []).append(spec)
    return [_document(rng, by_kind) for _ in range(count)]


def _document(rng: Random, by_kind: dict[str, list[kinds.Spec]]) -> str:
    kind = rng.choice(("text", *PAGES))
    if kind == "text":
        return " ".join(corpora.documents(rng.choice(kinds.LOCALES), 2, rng.randrange(10**6)))
    pairs = rng.choice(by_kind[kind]).pairs(rng, rng.randint(14, 20))
    return "".join(f"{x}{ANSWER}{y}{BETWEEN}" for _, x, y in pairs)


def train(args: argparse.Namespace, kd: float, name: str) -> None:
    """One distiller: stage 1, its quality, its files in half precision."""
    lm, tokenizer = load_llm(BACKBONE)
    distiller = open_distiller(
        BACKBONE, lm, BACKBONE, tokenizer, seed=args.seed, length=args.length, layout="metaicl", limit=128, budget=640
    )
    cfg = mend.Config(
        pretrain_steps=args.steps, pretrain_lr=args.lr, batch=args.batch, kd=kd, seed=args.seed, save_every=200
    )
    stream, _ = document_stream(distiller, documents(args.documents, args.seed), args.batch, args.seed)
    engine = Accelerator(mixed_precision=args.precision)
    mend.mend(lm, distiller, stream, None, cfg, args.out / "stages" / name, engine)
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    write_json(args.out / name / "quality.json", {"settings": settings, "held_out": measure(lm, distiller, args)})
    distiller.half().save_pretrained(args.out / name)


@torch.no_grad()
def measure(lm: torch.nn.Module, distiller: Distiller, args: argparse.Namespace) -> dict[str, float]:
    """Nats per token on documents of another seed: KL from the LM that reads the text, and cross-entropy."""
    distiller.eval()
    stream, _ = document_stream(distiller, documents(160, args.seed + 1), 16, 0)
    goals = {"kl": mend.soft(on="mask"), "cross_entropy": mend.hard()}
    found = {}
    for name, goal in goals.items():
        step, sums, units = mend.mend_step(lm, distiller, goal), 0.0, 0
        for _, batch in zip(range(10), stream, strict=False):
            terms: Terms = step(batch, Clock(0, 1))
            (term,) = terms.values()
            sums, units = sums + float(term.sum), units + count(batch, term.unit)
        found[name] = sums / units
    return found


def main() -> None:
    """Train both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=("distiller", "distiller-untaught"), help="train one of the two")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=12, help="documents per step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--length", type=int, default=16, help="vectors")
    parser.add_argument("--documents", type=int, default=6000)
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, kd in (("distiller", 1.0), ("distiller-untaught", 0.0)):
        if args.only in (None, name):
            train(args, kd, name)


if __name__ == "__main__":
    main()
