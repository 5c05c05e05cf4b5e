"""What a step of ``fit`` costs beside a bare PyTorch loop: same forward, backward, clipping and optimizer.

Both train their own copy of a tiny Llama in one process, taking turns step by step, so that whatever else the machine
does falls on both alike. The figure is the ratio of the median times of a step; the target is at most 1.10. The
ratio of the work done (processor time) stands beside it, for machines that are busy with other things. Writes
``benchmarks/results/step.json``.

    python benchmarks/step.py [--steps 60]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck.core.batch import Batch, next_token_batch, to_device
from limbeck.core.fit import fit
from limbeck.core.stage import Optim, Stage
from limbeck.core.terms import Clock, Terms, per

TARGET = 1.10
WARM = 5  # steps of each that are not counted
SIZES = {"0.2M": (64, 2, 64), "1M": (128, 4, 64), "4M": (256, 5, 64)}  # width, layers, tokens
ROWS, VOCABULARY = 8, 1024
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tiny(width: int, layers: int, length: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=length,
    )
    return LlamaForCausalLM(config).to(DEVICE)


def text(length: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(0)
    while True:
        ids = torch.randint(VOCABULARY, (ROWS, length), generator=generator)
        yield next_token_batch(ids, torch.ones_like(ids, dtype=torch.bool))


def logits(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    return model(input_ids=batch["ids"], use_cache=False).logits[batch["answer"]]


class Bare:
    """The loop one writes by hand."""

    def __init__(self, model: LlamaForCausalLM, steps: int) -> None:
        self.model = model.train()
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.0, steps)

    def step(self, batch: Batch) -> None:
        """One optimizer step."""
        batch = to_device(batch, DEVICE)
        loss = cross_entropy(logits(self.model, batch), batch["targets"][batch["answer"]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()


def now() -> tuple[float, float]:
    """Seconds on the wall, and seconds of work of this process."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


class Turns:
    """The stream of the fitted model: between two of its steps, the bare loop takes one with the same batch."""

    def __init__(self, bare: Bare, length: int) -> None:
        self.bare, self.length = bare, length
        self.fitted: list[tuple[float, float]] = []
        self.by_hand: list[tuple[float, float]] = []

    def __iter__(self) -> Iterator[Batch]:
        for batch in text(self.length):
            began = now()
            self.bare.step(batch)
            between = now()
            yield batch
            ended = now()
            self.by_hand.append((between[0] - began[0], between[1] - began[1]))
            self.fitted.append((ended[0] - between[0], ended[1] - between[1]))

    def medians(self) -> list[float]:
        """Milliseconds of a step: fit and bare on the wall, fit and bare of work."""
        return [
            median(1000 * times[clock] for times in steps[WARM:])
            for clock in (0, 1)
            for steps in (self.fitted, self.by_hand)
        ]


def compare(name: str, steps: int) -> dict[str, float | str]:
    size = SIZES[name]
    model, turns = tiny(*size), Turns(Bare(tiny(*size), steps), size[-1])

    def step(batch: Batch, clock: Clock) -> Terms:
        targets = batch["targets"][batch["answer"]]
        return per("answer", cross_entropy(logits(model, batch), targets, reduction="none"))

    with TemporaryDirectory() as folder:  # with its log; the one checkpoint comes after the last step that is timed
        fit(Stage(name, step, {"student": model}, turns, steps, Optim(lr=1e-4), save_every=steps), Path(folder))
    same = max(
        (a - b).detach().abs().max().item()
        for a, b in zip(model.parameters(), turns.bare.model.parameters(), strict=True)
    )
    fitted, bare, fitted_work, bare_work = turns.medians()
    return {
        "model": name,
        "tokens per row": size[-1],
        "parameters": sum(p.numel() for p in model.parameters()),
        "fit ms": round(fitted, 3),
        "bare ms": round(bare, 3),
        "extra ms": round(fitted - bare, 3),
        "ratio": round(fitted / bare, 4),
        "ratio of work": round(fitted_work / bare_work, 4),
        "largest difference of weights": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    rows = [compare(name, steps) for name in SIZES]
    for row in rows:
        print(*(f"{key} {value}" for key, value in row.items()), sep="  ")
    result = {
        "rows": ROWS,
        "device": DEVICE.type,
        "threads": torch.get_num_threads(),
        "target": TARGET,
        "met": all(row["ratio"] <= TARGET for row in rows),
        "sizes": rows,
    }
    path = Path(__file__).parent / "results" / "step.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
