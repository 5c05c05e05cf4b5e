"""Train the distiller that ships with limbeck: stage 1 of MEND on running text.

The text is of the sort that the language model itself was trained on: paragraphs in every locale, and pages of tasks,
line after line, as a glossary or a table would be. No page is of a held-out task, so nobody has seen the tasks that the
partitions are judged on; which kinds of task a partition may *learn* from is a matter of stage 2.

``python tools/train_distiller.py --out folder`` writes ``folder/distiller``; its ``quality.json`` has settings and
the loss on documents not trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator

from limbeck.atlas import corpora, kinds
from limbeck.atlas.train_lm import ANSWER, BETWEEN, fresh_labels, seen
from limbeck.context.distiller import Distiller, open_distiller
from limbeck.context.host import load_llm
from limbeck.context.streams import document_stream
from limbeck.core.save import write_json
from limbeck.core.terms import Clock, Terms, count
from limbeck.methods.context import mend

# How often each kind of page comes; the rest is paragraphs.
PAGES = {"name": 0.24, "class": 0.34, "code": 0.10, "date": 0.07, "number": 0.05, "amount": 0.08}
BACKBONE = mend.LLM  # the distiller starts as a copy of the language model, which is of its own size here


def documents(count: int, seed: int) -> list[str]:
    """Pages of 6 to 20 lines, and paragraphs."""
    rng = Random(f"documents {seed}")
    return [_document(rng) for _ in range(count)]


def _document(rng: Random) -> str:
    (kind,) = rng.choices([*PAGES, "text"], [*PAGES.values(), 1 - sum(PAGES.values())])
    if kind == "text":
        return " ".join(corpora.documents(rng.choice(kinds.LOCALES), 2, rng.randrange(10**6)))
    spec = fresh_labels(rng, rng.choice(seen(kind)))
    return "".join(f"{x}{ANSWER}{y}{BETWEEN}" for _, x, y in spec.pairs(rng, rng.randint(6, 20)))


def train(args: argparse.Namespace, name: str = "distiller") -> None:
    """Stage 1, its quality, its files in half precision."""
    lm, tokenizer = load_llm(BACKBONE)
    settings = {"length": args.length, "layout": "metaicl", "limit": 128, "budget": 640}
    distiller = open_distiller(args.start / name if args.start else BACKBONE, lm, BACKBONE, tokenizer, **settings)
    cfg = mend.Config(pretrain_steps=args.steps, pretrain_lr=args.lr, batch=args.batch, seed=args.seed, save_every=400)
    stream, _ = document_stream(distiller, documents(args.documents, args.seed), args.batch, args.seed, args.share)
    engine = Accelerator(mixed_precision=args.precision)
    mend.mend(lm, distiller, stream, None, cfg, args.out / "stages" / name, engine)
    said = {key: value for key, value in vars(args).items() if key not in ("out", "start")}
    write_json(args.out / name / "quality.json", {"settings": said, "held_out": measure(lm, distiller, args)})
    distiller.half().save_pretrained(args.out / name)


@torch.no_grad()
def measure(lm: torch.nn.Module, distiller: Distiller, args: argparse.Namespace) -> dict[str, float]:
    """Nats per token on documents of another seed: KL from the LM that reads the text, and cross-entropy."""
    distiller.eval()
    stream, _ = document_stream(distiller, documents(160, args.seed + 1), 16, 0, args.share)
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
    """Train it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder to go on from, as written by this script")
    parser.add_argument("--steps", type=int, default=1900)
    parser.add_argument("--batch", type=int, default=12, help="documents per step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--length", type=int, default=16, help="vectors")
    parser.add_argument("--documents", type=int, default=28_000)
    parser.add_argument("--share", type=float, default=0.65, help="of a document that the distiller reads")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args)


if __name__ == "__main__":
    main()
