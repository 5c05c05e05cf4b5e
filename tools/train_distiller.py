"""Train the distillers that ship with limbeck: stage 1 of MEND on the atlas's documents, with and without a teacher.

``python tools/train_distiller.py --out folder`` writes ``folder/distiller`` (the teacher's words, MEND) and
``folder/distiller-untaught`` (plain next-token loss, the HyperTuning baseline), both from the same start with the same
documents in the same order, and beside each ``quality.json``: settings and the loss on documents not trained on.
"""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

import torch

from limbeck.atlas import corpora
from limbeck.atlas.kinds import LOCALES
from limbeck.context.distiller import Distiller, open_distiller
from limbeck.context.host import load_llm
from limbeck.context.streams import document_stream
from limbeck.core.save import write_json
from limbeck.core.terms import Clock, Terms, count
from limbeck.methods.context import mend

BACKBONE = mend.LLM  # the distiller starts as a copy of the language model, which is of its own size here


def documents(per_locale: int, seed: int) -> list[str]:
    """Paragraphs in every locale of the tasks."""
    return list(chain.from_iterable(corpora.documents(place, per_locale, seed) for place in LOCALES))


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
    mend.mend(lm, distiller, stream, None, cfg, args.out / "stages" / name)
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    write_json(args.out / name / "quality.json", {"settings": settings, "held_out": measure(lm, distiller, args)})
    distiller.half().save_pretrained(args.out / name)


@torch.no_grad()
def measure(lm: torch.nn.Module, distiller: Distiller, args: argparse.Namespace) -> dict[str, float]:
    """Nats per token on documents of another seed: KL from the LM that reads the text, and cross-entropy."""
    distiller.eval()
    stream, _ = document_stream(distiller, documents(4, args.seed + 1), 16, 0)
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
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=16, help="documents per step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--length", type=int, default=16, help="vectors")
    parser.add_argument("--documents", type=int, default=300, help="per locale")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, kd in (("distiller", 1.0), ("distiller-untaught", 0.0)):
        if args.only in (None, name):
            train(args, kd, name)


if __name__ == "__main__":
    main()
