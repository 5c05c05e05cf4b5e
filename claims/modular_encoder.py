"""One encoder trained at several depths against one trained at its last layer, and against encoders of each depth.

CLINC150: the places are intents, a row holds four sentences of one intent or of four. Every arm starts from the encoder
of four layers that ships with limbeck and has not seen these sentences, and gets the same batches and steps: ``multi``
has exits after 1, 2 and 4 layers, ``last`` the last alone, and its earlier layers are then read through the same head;
``alone`` are encoders of the first layers only, each with as many steps as the others have for all of theirs. The
learning rate is the method's own; none was tuned, and Adam does not mind that the weights of three exits add up to more
than one. Measured on intents that nobody was trained on.
"""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import torch
from common import arguments, needed, summary, verdict, wins, write_result
from torch import Tensor

from limbeck.analyses.measure import measure
from limbeck.core.batch import Batch
from limbeck.core.signals import Signals
from limbeck.core.stage import distill_step
from limbeck.core.terms import Clock, Terms, per
from limbeck.data.repositories import Places, place_batches
from limbeck.data.stream import Batches
from limbeck.methods.encoders.modular_encoder import Config, modular_encoder
from limbeck.models.load import load_model
from limbeck.objectives.exits import at_exits
from limbeck.objectives.tokens import hard
from limbeck.objectives.weighted import weighted
from limbeck.students.exits import MultiExit
from limbeck.students.layers import keep_layers

SETTING: dict[str, Any] = {
    "data": "clinc150",
    "start": "limbeck:atlas/weights/encoder-a",
    "unseen": 30,
    "texts": 4,
    "length": 48,
    "batch": 16,
    "exits": [1, 2, 4],
    "steps": 150,
    "lr": 5e-4,
}
EXITS = tuple(SETTING["exits"])
LAST = EXITS[-1]
MULTI, ALONE = "multi", {depth: f"alone {depth}" for depth in EXITS[:-1]}
LAST_ONLY = "last"  # and what stands alone at that depth
ARMS = {MULTI: EXITS, LAST_ONLY: (LAST,)} | {name: (depth,) for depth, name in ALONE.items()}


class Data:
    """Sentences by their intent: to learn from, and those of intents that are not learned from."""

    def __init__(self, said: dict[str, list[list[str]]], tokenizer: Any) -> None:
        names = sorted({label for _, label in said["train"]})
        unseen = set(names[:: len(names) // SETTING["unseen"]])
        seen = set(names) - unseen
        self.train = places(said["train"], seen)
        self.test = places([row for rows in (said["train"], said["test"]) for row in rows], unseen)
        self.tokenizer = tokenizer

    def batches(self, places: Places, rows: int, seed: int) -> Batches:
        """Rows of sentences that belong together, or do not, with masked words."""
        return place_batches(places, self.tokenizer, SETTING["length"], SETTING["batch"], rows, SETTING["texts"], seed)


def places(rows: list[list[str]], wanted: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in sorted(wanted)}
    for text, label in rows:
        if label in wanted:
            found[label].append(text)
    return found


def encoder(exits: tuple[int, ...], start: Any, seed: int) -> MultiExit:
    """The layers of ``start`` up to the last exit."""
    torch.manual_seed(seed)
    return MultiExit(deepcopy(start) if exits[-1] == LAST else keep_layers(start, range(exits[-1])), exits)


def trained(arm: str, seed: int, start: Any, data: Data) -> MultiExit:
    """The arm's encoder after its training, which can be read at each exit that it has the layers for."""
    model = encoder(ARMS[arm], start, seed)
    cfg = Config(steps=SETTING["steps"], lr=SETTING["lr"], warmup=0.1, weight_decay=0.01, seed=seed)
    modular_encoder(model, data.batches(data.train, SETTING["batch"] * SETTING["steps"], seed), cfg)
    return readable(model).eval()


def readable(model: MultiExit) -> MultiExit:
    """The same model with all exits that fit; those it was not trained with read as its last one does."""
    wider = MultiExit(model.model, [depth for depth in EXITS if depth <= model.depth])
    wider.same = model.same
    with torch.no_grad():
        for i, depth in enumerate(wider.exits):
            wider.said[i] = model.said[model.exits.index(depth) if depth in model.exits else -1]
    return wider


def together(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
    """How often it is right about whether the sentences of a row belong together. Term: ``right``."""
    said: Tensor = student.need("extra")["same"]
    return per("row", (said > 0) == batch["same"], "right")


def quality(model: MultiExit, batches: list[Batch]) -> dict[int, tuple[float, float]]:
    """Nats per masked word, and the share of rows judged rightly, at each exit."""
    goal = at_exits(weighted(words=(1.0, hard()), same=(1.0, together)), dict.fromkeys(model.exits, 1.0))
    found = measure(distill_step(lambda batch: model(batch), lambda batch: Signals(), goal), batches)
    return {depth: (found[f"words.{depth}"], found[f"same.{depth}"]) for depth in model.exits}


def checks(rows: list[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    found = []
    for depth, alone in ALONE.items():
        at = [row for row in rows if row["layers"] == depth]
        won, level = wins(at, "words", MULTI, LAST_ONLY, "arm"), worse(at, MULTI, alone)
        found.append(
            {
                "claim": f"after {depth} of {LAST} layers, masked words are told better than by the model of one exit",
                "holds": won == seeds,
                "seen": f"{won} of {seeds} seeds",
            }
        )
        found.append(
            {
                "claim": f"... and no worse than by an encoder of {depth} trained alone for as many steps (within 2 %)",
                "holds": level <= 0.02,
                "seen": f"{100 * level:+.1f} %",
            }
        )
    cost = worse([row for row in rows if row["layers"] == LAST], MULTI, LAST_ONLY)
    return [
        *found,
        {
            "claim": "the whole model pays no more than 2 % for its exits",
            "holds": cost <= 0.02,
            "seen": f"{100 * cost:+.1f} %",
        },
    ]


def worse(rows: list[dict[str, Any]], mine: str, other: str) -> float:
    """By what share ``mine`` loses more nats per masked word than ``other``, averaged over seeds."""
    mean = {
        name: summary([row for row in rows if row["arm"] == name], "arm")[name]["words"]["mean"]
        for name in (mine, other)
    }
    return mean[mine] / mean[other] - 1


def main() -> None:
    args = arguments(__doc__)
    (path,) = needed(args.data, "clinc150/data_full.json")
    start, tokenizer = load_model(SETTING["start"], "masked")
    data = Data(json.loads(path.read_text(encoding="utf-8")), tokenizer)
    rows = []
    held = data.batches(data.test, 640, 1).take(40)
    for seed in range(args.seeds):
        for arm in ARMS:
            for depth, (words, right) in quality(trained(arm, seed, start, data), held).items():
                if depth in ARMS[arm] or arm == LAST_ONLY:
                    row = {"seed": seed, "method": f"{arm}, {depth} layers" if arm in (MULTI, LAST_ONLY) else arm}
                    rows.append({**row, "arm": arm, "layers": depth, "words": words, "same_place": right})
                    print(rows[-1], flush=True)
    result = {
        "claim": "every prefix of one encoder is a model of its own",
        "setting": SETTING,
        "rows": rows,
        "summary": summary(rows),
    }
    found = checks(rows, args.seeds)
    write_result(args.out, "modular_encoder", {**result, "checks": found, "verdict": verdict(found)})


if __name__ == "__main__":
    main()
