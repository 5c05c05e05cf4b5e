"""Train the language model that ships with limbeck: ``python -m limbeck.atlas.train_lm --out folder``.

A small Llama learns to learn in context: its training text is tasks of the atlas, example after
example, in the layout that the rest of limbeck uses for it (``metaicl``: input, newline, output, three newlines). Tasks
that are held out (``tasks.is_held_out``) never occur. A share of the rows is running text (``corpora.documents``).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from limbeck.atlas import corpora, kinds, names, tasks
from limbeck.core.batch import Batch, next_token_batch, shift
from limbeck.core.fit import fit
from limbeck.core.stage import Optim, Stage
from limbeck.core.terms import Clock, Term, Terms

VOCABULARY = 4096
ANSWER, BETWEEN = "\n", "\n\n\n"
END = "<|endoftext|>"

# How often each kind of task is shown, by the step from which it holds; the rest is running text. Names come first:
# what a class is shows in names. "recall" is no task but a drill: pairs that nothing connects, asked again.
SHARES = {
    0: {"name": 0.34, "class": 0.30, "code": 0.10, "date": 0.08, "number": 0.06},
    1000: {"name": 0.20, "class": 0.44, "code": 0.08, "date": 0.07, "number": 0.05, "amount": 0.08},
    1500: {"name": 0.15, "class": 0.30, "code": 0.06, "date": 0.05, "number": 0.04, "amount": 0.06, "recall": 0.28},
    2000: {"name": 0.15, "class": 0.42, "code": 0.07, "date": 0.06, "number": 0.04, "amount": 0.07, "recall": 0.14},
}
REPEATS = 1000  # the step from which a half of the classifications draw from a few names again and again


def train_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the atlas's names and texts: digits stay single, the layout's newlines are tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([END])
    core.add_tokens([AddedToken(BETWEEN, normalized=False), AddedToken(ANSWER, normalized=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    core.train_from_iterator(_tokenizer_texts(seed), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END, model_max_length=1024)


def _tokenizer_texts(seed: int) -> Iterator[str]:
    for place in kinds.LOCALES:
        for category in names.CATEGORIES:
            yield from names.names(category, place).values()
        yield from corpora.sentences(place, n=200, seed=seed)
    for word in kinds.LABELS:
        yield from [word] * 20


@dataclass
class Rows:
    """Rows of ``length`` tokens, several tasks each; batch i depends on (seed, i) alone: a position is all to save."""

    tokenizer: PreTrainedTokenizerFast
    batch: int
    length: int
    seed: int = 0
    position: int = 0
    _ids: dict[str, list[int]] = field(default_factory=dict, repr=False)

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from where the stream stood."""
        self.position = state["position"]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            rng = Random(f"rows-{self.seed}-{self.position}")
            step = self.position
            self.position += 1
            yield self._collate([self._row(rng, step) for _ in range(self.batch)])

    def _row(self, rng: Random, step: int) -> tuple[list[int], list[bool]]:
        """Token ids of one row and which of them belong to an answer: tasks of 4 to 24 examples, one after another."""
        ids: list[int] = []
        answer: list[bool] = []
        while len(ids) < self.length:
            kind = draw_kind(rng, step)
            if kind is None:
                text = corpora.documents(rng.choice(kinds.LOCALES), n=1, seed=rng.randrange(10**6))[0]
                ids += self._tokenize(text)
                answer += [False] * (len(ids) - len(answer))
            for x, y in examples(rng, kind, step) if kind else []:
                before, after = self._tokenize(x), self._tokenize(ANSWER + y)
                ids += before + after + self._tokenize(BETWEEN)
                answer += [False] * (len(before) + 1) + [True] * len(after)
            ids.append(int(self.tokenizer.eos_token_id))
            answer.append(False)
        return ids[: self.length], answer[: self.length]

    def _tokenize(self, text: str) -> list[int]:
        if text not in self._ids:  # names come again and again, and the fast backend has no per-call overhead
            self._ids[text] = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return self._ids[text]

    def _collate(self, found: list[tuple[list[int], list[bool]]]) -> Batch:
        ids = torch.full((len(found), self.length), int(self.tokenizer.pad_token_id))
        mask, keep = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
        for row, (tokens, answer) in enumerate(found):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
            keep[row, : len(answer)] = torch.tensor(answer)
        return next_token_batch(ids, mask) | {"reply": shift(ids, keep)[1]}


def draw_kind(rng: Random, step: int) -> str | None:
    """The kind of task to show at ``step``, or None where running text is to stand."""
    point = rng.random()
    for kind, share in SHARES[max(first for first in SHARES if first <= step)].items():
        if point < share:
            return kind
        point -= share
    return None


def examples(rng: Random, kind: str, step: int) -> list[tuple[str, str]]:
    """4 to 24 pairs of input and output of one task of ``kind`` that is not held out.

    Recalling, and a share of the classifications, repeat a few pairs: looking up the same name again is learned sooner
    than looking up a like one, and leads to it (burstiness, arXiv 2205.05055).
    """
    count = rng.randint(4, 24)
    if kind == "recall":
        return recall(rng, count)
    spec = fresh_labels(rng, rng.choice(seen(kind)))
    if step >= REPEATS and kind == "class" and rng.random() < 0.5:
        few = [(x, y) for _, x, y in spec.pairs(rng, rng.randint(3, 8))]
        return rng.choices(few, k=count)
    return [(x, y) for _, x, y in spec.pairs(rng, count)]


def recall(rng: Random, count: int) -> list[tuple[str, str]]:
    """A few pairs of unrelated names, each several times: only having seen the pair before tells its second part."""
    specs = [rng.choice(seen("name")) for _ in range(rng.randint(2, max(2, count // 2)))]
    drawn = [spec.pairs(rng, 2) for spec in specs]
    pairs = [(two[0][1], two[-1][2]) for two in drawn if two]
    return rng.choices(pairs, k=count)


@lru_cache
def seen(kind: str) -> list[kinds.Spec]:
    """The tasks of a kind that are not held out."""
    return [spec for spec in tasks.specs() if spec.kind == kind and not tasks.is_held_out(spec)]


def fresh_labels(rng: Random, spec: kinds.Spec) -> kinds.Spec:
    """The same task; a classification gets other words for its classes every time, so only the context tells them."""
    if not isinstance(spec, kinds.ClassTask):
        return spec
    return kinds.class_task(spec.by, spec.fixed, spec.classes, rng.sample(kinds.LABELS, len(spec.classes)))


def next_token_step(model: LlamaForCausalLM, text_weight: float):
    """Cross-entropy on answers, plus ``text_weight`` times that on every token."""

    def step(batch: Batch, clock: Clock) -> Terms:
        logits = model(input_ids=batch["ids"], attention_mask=batch["mask"].long()).logits
        nll = _nll(logits, batch["targets"])
        return Terms(
            answer=Term(nll[batch["reply"]].sum(), "reply"),
            text=Term(nll[batch["answer"]].sum(), "answer", text_weight),
        )

    return step


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    flat = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return flat.view_as(targets)


def build(tokenizer: PreTrainedTokenizerFast, width: int, layers: int, heads: int) -> LlamaForCausalLM:
    """A randomly initialised Llama for this tokenizer."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    """Train from nothing and save in half precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--more-steps", type=int, default=1400, help="after these, again from half the learning rate")
    parser.add_argument("--batch", type=int, default=9, help="rows per step")
    parser.add_argument("--length", type=int, default=512, help="tokens per row")
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(args.seed)
    tokenizer.save_pretrained(args.out / "lm")
    model = build(tokenizer, args.width, args.layers, args.heads)
    rows = Rows(tokenizer, args.batch, args.length, args.seed)
    for name, steps, lr in (("first", args.steps, args.lr), ("then", args.more_steps, args.lr / 2)):
        stage = Stage(
            name,
            next_token_step(model, text_weight=0.3),
            train={"lm": model},
            stream=rows,
            steps=steps,
            optim=Optim(lr=lr, schedule="cosine", warmup=0.03, betas=(0.9, 0.95), weight_decay=0.05),
            save_every=500,
        )
        fit(stage, args.out, Accelerator(mixed_precision="bf16"))
    model.half().save_pretrained(args.out / "lm")


if __name__ == "__main__":
    main()
