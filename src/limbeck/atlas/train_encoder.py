"""Train one of the encoders that ship with limbeck: ``python -m limbeck.atlas.train_encoder --which a --out folder``.

A small BERT learns to fill gaps in paragraphs of six locales and in pairs of sentences that say the same in two of
them. The two encoders differ in their text and first weights, and share the tokenizer: ``b`` takes it from ``a`` by
``--tokenizer out/encoder-a``, since its trainer breaks ties at random. ``out/encoder-<which>`` holds what ships.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import WordPiece
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from limbeck.atlas.corpora import documents, parallel
from limbeck.core.batch import Batch
from limbeck.core.fit import fit
from limbeck.core.save import write_json
from limbeck.core.stage import Optim, Stage, Step
from limbeck.core.terms import Clock, Terms, per
from limbeck.data.stream import Batches, mlm_batches
from limbeck.losses.divergence import cross_entropy

LOCALES = ("ro", "en", "fr", "de", "hu", "bg")
VOCABULARY = 3000
LENGTH = 96
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
HELD_OUT = 10**6  # a seed of the text that no training seed equals


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A cased WordPiece tokenizer of ``VOCABULARY`` pieces over text of ``LOCALES``; digits stay single."""
    core = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    core.decoder = WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        show_progress=False,
    )
    core.train_from_iterator((text for place in LOCALES for text in documents(place, 1500, HELD_OUT + 1)), trainer)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(mark, core.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=LENGTH + 32, **SPECIAL)


def texts(per_locale: int, seed: int) -> Iterator[str]:
    """Paragraphs of each locale, and pairs of sentences in Romanian and another."""
    for place in LOCALES:
        yield from documents(place, per_locale, seed)
    for place in LOCALES[1:]:
        yield from (" ".join(pair) for pair in parallel("ro", place, per_locale // 2, seed))


def build(tokenizer: PreTrainedTokenizerBase) -> BertForMaskedLM:
    """A randomly initialised encoder for this tokenizer: 4 layers of width 128, 0.95 M parameters."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=LENGTH + 32,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertForMaskedLM(config)
    table = model.bert.embeddings.position_embeddings.weight
    table.data = 0.1 * sinusoids(*table.shape)
    return model


def sinusoids(positions: int, width: int) -> Tensor:
    """Waves positions x width to start from: Vaswani et al. 2017, section 3.5, with base 1000 for these short rows.

    A choice: neighbours differ from the first step on, where random positions would have to learn it. Not compared.
    """
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(1000.0) / width))
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def fill(model: BertForMaskedLM, batch: Batch) -> Tensor:
    """Logits n v at the batch's masked positions only."""
    states = model.bert(input_ids=batch["ids"], attention_mask=batch["mask"].long()).last_hidden_state
    return model.cls(states[batch["answer"]])


def masked_step(model: BertForMaskedLM) -> Step:
    """Cross-entropy at the masked positions (Devlin et al. 2019, section 3.1)."""

    def step(batch: Batch, clock: Clock) -> Terms:
        return per("answer", cross_entropy(fill(model, batch), batch["targets"][batch["answer"]]), "mlm")

    return step


@torch.no_grad()
def measure(model: BertForMaskedLM, batches: Iterable[Batch], common: int, digits: Tensor) -> dict[str, float]:
    """Share of masked tokens filled right, of all and of those that are no digits, beside always saying ``common``."""
    said, true = [], []
    for batch in batches:
        said.append(fill(model, batch).argmax(-1))
        true.append(batch["targets"][batch["answer"]])
    guess, target = torch.cat(said), torch.cat(true)
    right, word = (guess == target).float(), ~torch.isin(target, digits)
    found = {"all": right, "no digits": right[word], "most frequent token": (target == common).float()}
    return {name: round(values.mean().item(), 4) for name, values in found.items()}


def quality(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerBase, stream: Batches) -> dict[str, dict[str, float]]:
    """``measure`` on 300 held-out paragraphs of each locale."""
    common = torch.cat([batch["targets"][batch["answer"]] for batch in stream.take(50)]).bincount().argmax().item()
    digits = torch.tensor([tokenizer.convert_tokens_to_ids(str(digit)) for digit in range(10)])
    found = {}
    for place in LOCALES:
        held_out = mlm_batches(documents(place, 300, HELD_OUT), tokenizer, LENGTH, 50, seed=HELD_OUT)
        found[place] = measure(model, held_out.take(6), int(common), digits)
    return found


def main() -> None:
    """Train from nothing, measure, and save in half precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--which", choices=("a", "b"), default="a")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer's folder, to use instead of training one")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=16, help="rows per step")
    parser.add_argument("--masked", type=float, default=0.2, help="share of tokens masked in training")
    parser.add_argument("--texts", type=int, default=6000, help="paragraphs per locale")
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    seed = "ab".index(args.which)
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer) if args.tokenizer else train_tokenizer()
    folder = args.out / f"encoder-{args.which}"
    tokenizer.save_pretrained(folder)  # before its use, which leaves the length of the rows in it
    model = build(tokenizer)
    stream = mlm_batches(texts(args.texts, seed), tokenizer, LENGTH, args.batch, seed, args.masked)
    optim = Optim(lr=args.lr, schedule="cosine", warmup=0.05, betas=(0.9, 0.98), weight_decay=0.01)
    stage = Stage(f"mlm-{args.which}", masked_step(model), {"encoder": model}, stream, args.steps, optim, seed=seed)
    summary = fit(stage, args.out)
    found = quality(model.half().float(), tokenizer, stream)
    model.half().save_pretrained(folder)
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "tokenizer")}
    size = sum(value.numel() for value in model.parameters())
    report = {"script": "python -m limbeck.atlas.train_encoder", **settings, "seed": seed, "locales": LOCALES}
    report |= {"parameters": size, "seconds": round(summary["seconds"]), "loss": round(summary["loss"], 4)}
    write_json(folder / "quality.json", {**report, "held-out masked accuracy": found})


if __name__ == "__main__":
    main()
