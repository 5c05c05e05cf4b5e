"""What a store takes on disk, how true it is, and how fast it is written and read, beside DistillKit's format.

Three teachers: the language model that ships with limbeck on English text of the atlas, and two made-up ones whose
next-token distributions follow Zipf's law with noise over 65,536 and 151,936 tokens. For each and for 16 to 128 kept
tokens:

- ``bytes`` per supervised token: of the blocks as written, with their index; ``book`` is what the code book adds once
  for the whole store;
- ``kl``: divergence in nats of the teacher's whole distribution to what is read again, ``rest`` included; ``error``:
  the largest error of a kept token's log-probability;
- ``write`` and ``read``: tokens per second of one processor, from and to tensors. Reading ends with ids and
  log-probabilities (``read``), or with the log-probabilities of all tokens (``dense``).

DistillKit's two settings are measured likewise where its code is at hand (``--distillkit FOLDER`` of a checkout); what
its format does not say about the rest is spread evenly, as its loss does (``symmetric_uniform``). Without it, its bytes
are computed from its layout.

``worst``: bytes per token at k = 64 where the code book knows nothing: sets of tokens drawn at random, with the shipped
model's log-probabilities. Real teachers of these vocabularies lie between it and the Zipf ones.

``step``: reading a batch from a store as a share of a training step of a small student, both processor time.
Targets: at k = 64, at most 170 bytes at 0.04 nat. Writes ``benchmarks/results/store.json``; takes some minutes::

    python benchmarks/store.py [--distillkit FOLDER] [--only atlas]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.atlas import corpora
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.data.store.book import Book, plain_book
from limbeck.data.store.distillkit import Scheme
from limbeck.data.store.records import Kept, decode, encode
from limbeck.data.store.rest import tilted
from limbeck.data.store.sounding import make_book
from limbeck.data.store.teach import SAMPLE_LOGITS, Keep, teach
from limbeck.data.stream import lm_batches
from limbeck.models.load import load_model
from limbeck.objectives.tokens import soft
from limbeck.sources.model import model_source
from limbeck.sources.stored import stored, told
from limbeck.students.load import load_student

SIZES = (16, 32, 50, 64, 128)
ROW, ROWS = 64, 4  # positions of a row, and rows that are measured
INDEX = 16 + 8 + 8  # bytes of a row in its shard's index
TARGET = {"k": 64, "bytes": 170, "kl": 0.04}
RECOMMENDED: dict[str, Any] = {
    "k": 128, "exact_k": 16, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"],
    "term_dtype": "float32", "residual_bins": [], "delta_encoding": False, "error_diffusion": False,
}  # fmt: skip
BUDGET = RECOMMENDED | {"k": 50, "exact_k": 1, "polynomial_terms": [0, 1, "sqrt"]}
RESULT = Path(__file__).parent / "results" / "store.json"


def seconds(call: Callable[[], Any], least: float = 0.3) -> float:
    """Processor time of a call: the least of several."""
    call()
    taken, best = 0.0, float("inf")
    while taken < least:
        begin = time.process_time()
        call()
        one = time.process_time() - begin
        taken, best = taken + max(one, 1e-4), min(best, one)
    return max(best, 1e-6)


def atlas(count: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the shipped model: ``count`` positions to make the book, and others to measure on."""
    model, tokenizer = load_model("limbeck:atlas/weights/lm", "causal")
    stream = lm_batches(corpora.documents("en", 400, 0), tokenizer, 128, 8)
    found = []
    with torch.no_grad():
        for batch in stream.take(12):
            found.append(model_source(model)(batch).logits_at(batch["answer"]).log_softmax(-1))
    every = torch.cat(found)
    here = torch.arange(len(every)) % 6 == 5
    return every[~here][:count].clone(), every[here][: ROW * ROWS].clone()


def zipf(size: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """A teacher whose tokens are about as common as Zipf's law says, in an order of their own."""

    def made(count: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(0)
        order = torch.randperm(size, generator=draw)
        common = (-1.2 * torch.log(torch.arange(1, size + 1).float()))[order]
        parts = []
        for rows in (count, ROW * ROWS):
            noise = torch.randn(rows, size, generator=draw)
            parts.append(noise.mul_(1.5).add_(common).mul_(1.6).log_softmax(-1))
        return parts[0], parts[1]

    return made


TEACHERS: dict[str, tuple[int, Callable[[int], tuple[Tensor, Tensor]]]] = {
    "atlas": (4098, atlas),
    "zipf-65k": (65_536, zipf(65_536)),
    "zipf-152k": (151_936, zipf(151_936)),
}


def kept_of(log_probs: Tensor, top: int, book: Book) -> Kept:
    best = log_probs.topk(top, -1)
    rest = log_probs.exp().scatter_(1, best.indices, 0.0).sum(1).log()
    tilt, reach = tilted(book, log_probs, best.indices)
    return Kept(*(part.numpy() for part in (best.indices, best.values, rest, tilt, reach)))


def divergence(log_probs: Tensor, told_as: Tensor) -> float:
    return float((log_probs.exp() * (log_probs - told_as.log_softmax(-1))).sum(-1).mean())


def ours(sample: Tensor, fresh: Tensor, top: int) -> dict[str, float]:
    book = make_book(sample.clone(), top)
    rows, at = fresh.split(ROW), np.arange(ROW)
    blocks = [np.frombuffer(encode(at, kept_of(row, top, book), book), np.uint8) for row in rows]
    slots = np.arange(len(fresh)).reshape(len(rows), ROW)
    everywhere = torch.ones(slots.shape, dtype=torch.bool)

    def read() -> Any:
        return told([decode(block, book)[1] for block in blocks], slots, book, torch.device("cpu"))

    lazy = read()
    best = fresh.topk(top, -1)
    dense = lazy.at(everywhere)
    write = seconds(lambda: [encode(at, kept_of(row, top, book), book) for row in rows])
    return {
        "bytes": (sum(map(len, blocks)) + INDEX * len(rows)) / len(fresh),
        "book": float(sum(t.nbytes for t in (book.rarity, book.widths, book.shares, book.directions, book.scales))),
        "directions": book.tilts,
        "kl": divergence(fresh, dense),
        "error": float((dense.gather(1, best.indices) - best.values).abs().max()),
        "write": len(fresh) / write,
        "read": len(fresh) / seconds(read),
        "dense": len(fresh) / seconds(lambda: lazy.at(everywhere)),
    }


def theirs(fresh: Tensor, settings: dict[str, Any]) -> dict[str, float]:
    """DistillKit's own code on the same distributions; its bytes alone where it is not at hand."""
    size, top = fresh.shape[1], settings["k"]
    plain = {key: value for key, value in settings.items() if key != "d"}
    counted = float(Scheme(d=size, **plain).bytes_per_token)
    try:
        from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor
    except ImportError:
        return {"bytes": counted}
    compressor = LogprobCompressor(DistributionQuantizationConfig(d=size, **settings))
    packed = compressor.compress(fresh)
    found = sum(part.numel() * part.element_size() for part in packed.values()) / len(fresh)
    assert found == counted, (found, counted)
    ids, values = compressor.decompress_to_sparse(packed)
    left = (1 - values.float().exp().sum(-1, keepdim=True)).clamp_min(1e-8) / (size - top)
    dense = left.log().expand(-1, size).clone().scatter_(1, ids, values.float())
    best = fresh.gather(1, ids)
    return {
        "bytes": found,
        "kl": divergence(fresh, dense),
        "error": float((values.float() - best).abs().max()),
        "write": len(fresh) / seconds(lambda: compressor.compress(fresh)),
        "read": len(fresh) / seconds(lambda: compressor.decompress_to_sparse(packed)),
    }


def worst() -> dict[str, float]:
    """Bytes per token of random sets of 64 tokens, by the size of the vocabulary."""
    _, fresh = atlas(1)
    log_p, draw, none = fresh.topk(64, -1).values.numpy(), np.random.default_rng(0), np.zeros((ROW, 0), np.int8)
    found = {}
    for size in (65_536, 151_936):
        blocks = []
        for row in np.split(log_p, ROWS):
            ids = np.stack([draw.choice(size, 64, replace=False) for _ in row])
            kept = Kept(ids, row, np.log1p(-np.exp(row.astype(float)).sum(1)), none, np.zeros(ROW))
            blocks.append(encode(np.arange(ROW), kept, plain_book(size)))
        found[str(size)] = (sum(map(len, blocks)) + INDEX * ROWS) / (ROW * ROWS)
    return found


def step_share() -> dict[str, float]:
    """Reading a batch as a share of a step of the shipped model's half, forward, backward and AdamW."""
    model, tokenizer = load_model("limbeck:atlas/weights/lm", "causal")
    stream = lm_batches(corpora.documents("en", 60, 0), tokenizer, 128, 8)
    with TemporaryDirectory() as folder:
        teach(model_source(model), stream, tokenizer, Path(folder) / "store", Keep())
        source, batch = stored(Path(folder) / "store"), stream.at(0)
        torch.manual_seed(0)
        student = load_student("half", model, tokenizer, "causal")
        optimizer, count = torch.optim.AdamW(student.parameters()), {"answer": int(batch["answer"].sum())}

        def step(said: Signals) -> None:
            soft()(model_source(student)(batch), said, batch, Clock(0, 1)).total(count).backward()
            optimizer.step()
            optimizer.zero_grad()

        said = source(batch)
        with torch.no_grad():
            live = model_source(model)(batch).logits_at(batch["answer"])
        whole = torch.zeros(*batch["ids"].shape, live.shape[1]).masked_scatter(batch["answer"][..., None], live)
        dense = Signals(logits=whole)
        known = {"read": seconds(lambda: source(batch)), "step": seconds(lambda: step(dense))}
        known["spread"] = seconds(lambda: said.logits_at(batch["answer"]))
        with torch.no_grad():
            known["teacher"] = seconds(lambda: model_source(model)(batch).logits_at(batch["answer"]))
    share = (known["read"] + known["spread"]) / known["step"]
    return {**known, "share": share, "share_of_teacher": known["teacher"] / known["step"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distillkit", help="folder of a checkout of DistillKit, to measure it too")
    parser.add_argument("--only", choices=[*TEACHERS, "worst", "step"], action="append")
    args = parser.parse_args()
    if args.distillkit:
        sys.path.insert(0, args.distillkit)
    torch.set_num_threads(1)
    wanted = args.only or [*TEACHERS, "worst", "step"]
    result = json.loads(RESULT.read_text()) if RESULT.exists() and args.only else {}
    for name in (n for n in wanted if n in TEACHERS):
        size, make = TEACHERS[name]
        sample, fresh = make(min(2048, SAMPLE_LOGITS // size))
        rows = {f"limbeck k={top}": ours(sample, fresh, top) for top in SIZES}
        rows |= {f"distillkit k={s['k']}": theirs(fresh, s) for s in (BUDGET, RECOMMENDED)}
        result[name] = {key: {n: round(v, 5) for n, v in row.items()} for key, row in rows.items()}
        for key, row in result[name].items():
            print(f"{name:10s} {key:18s}", "  ".join(f"{n} {v:.5g}" for n, v in row.items()), flush=True)
    if "worst" in wanted:
        result["worst"] = worst()
        print("worst", result["worst"])
    if "step" in wanted:
        result["step"] = {name: round(value, 5) for name, value in step_share().items()}
        print("step", result["step"])
    met = {n: result[n][f"limbeck k={TARGET['k']}"] for n in TEACHERS if n in result}
    result["met"] = {n: row["bytes"] <= TARGET["bytes"] and row["kl"] <= TARGET["kl"] for n, row in met.items()}
    result["target"] = TARGET
    print("target met:", result["met"])
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
