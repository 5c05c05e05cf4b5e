"""A case for every objective, trained for one step; also as a script for two processes: ``gradients_child.py OUT``.

Eight rows are one batch, four micro-batches of two rows, or two micro-batches on each of two processes. They count
unequally: one micro-batch has nothing supervised, and the second process has several times as much as the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from cutters import TEXTS, cutter
from torch import Tensor, nn

from limbeck.core.batch import IGNORE, Batch
from limbeck.core.signals import Readout, Signals
from limbeck.core.stage import Objective, Optim, Stage, distill_step
from limbeck.core.terms import Clock
from limbeck.data.crossed import collate, text_rows
from limbeck.data.spelling import shared_events
from limbeck.losses.closed import FORMS
from limbeck.losses.decoupled import adaptive_kl
from limbeck.losses.divergence import forward_kl, interpolated_cross_entropy, jsd, reverse_kl
from limbeck.objectives.across import in_pieces, shared, spans, uld
from limbeck.objectives.classes import classes
from limbeck.objectives.critics import mlp_critic, pair_name
from limbeck.objectives.exits import at_exits, belongs_together, finds_its_match
from limbeck.objectives.features import DISTANCES, hidden, pooled
from limbeck.objectives.intermediate import FIXED, Layers, comparison
from limbeck.objectives.layer_maps import every
from limbeck.objectives.named import Named
from limbeck.objectives.pace import AdaptiveT, interpolated
from limbeck.objectives.patches import reconstruction
from limbeck.objectives.relations import relation
from limbeck.objectives.texts import per_text
from limbeck.objectives.tokens import Comparing, Comparison, hard, soft
from limbeck.objectives.weighted import over_members, weighted
from limbeck.sources.ensemble import mean_source
from limbeck.sources.vocabulary import elsewhere

MODES = ("ddp", "fsdp")
WIDTH, TEACHER, HEADS, CLASSES = 4, 6, 2, 3
OURS, THEIRS = "byte level", "byte fallback"  # trained alike in every process, which the unigram one is not
BLOCKS = [(1, 1), (2, 2)]


class Net(nn.Module):
    """Says all that a source can: states, relations, logits of tokens and classes, exits, one vector per row."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.relations = nn.ModuleList([nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)])
        self.classes, self.same, self.draw = (nn.Linear(width, size) for size in (CLASSES, 1, 16))

    def forward(self, batch: Batch) -> Signals:
        states = [self.table(batch["ids"])]
        for block in self.blocks:
            states.append(torch.tanh(block(states[-1] + 0.1 * states[-1].cumsum(1))))
        mask = batch["mask"].unsqueeze(-1)
        row = (states[-1] * mask).sum(1) / mask.sum(1)
        exits = tuple(
            Signals(readout=self.read(some), extra={"same": self.same(some[:, 0])[:, 0]}) for some in states[1:]
        )
        return Signals(
            readout=self.read(states[-1]),
            hidden=dict(enumerate(states)),
            qkv={1 + i: self.related(i, some) for i, some in enumerate(states[1:])},
            pooled=row,
            exits=exits,
            extra={**exits[-1].extra, "match": self.blocks[0](row), "patches": self.drawn(row)},
        )

    def read(self, states: Tensor) -> Readout:
        return Readout(states, self.table.weight, scale=1.5)

    def related(self, block: int, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.relations[block](states).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def drawn(self, row: Tensor) -> Tensor:
        """Four patches of four pixels."""
        return self.draw(row).unflatten(-1, (4, 4))

    def judge(self, batch: Batch) -> Signals:
        """Logits of classes."""
        return Signals(logits=self.classes(self(batch).need("pooled")))


@dataclass(frozen=True)
class Case:
    """An objective, the networks that learn beside the student, what is asked, and who teaches.

    ``alone``: whether every row is judged without the others, so that it does not matter which share a micro-batch.
    """

    goal: Callable[[nn.ModuleDict], Objective]
    links: Callable[[], dict[str, nn.Module]] = field(default=dict)
    ask: str = "forward"
    teacher: str = "one"
    alone: bool = True


@cache
def events() -> tuple[Any, Any, tuple[int, int]]:
    return shared_events(cutter(OURS), cutter(THEIRS))


def maps(pairs: list[tuple[int, int]] = BLOCKS) -> dict[str, nn.Module]:
    return {pair_name(pair): nn.Linear(WIDTH, TEACHER) for pair in pairs}


def layers(name: str, **settings: Any) -> Callable[[nn.ModuleDict], Objective]:
    return lambda links: Layers(comparison(name), settings.get("pairs", BLOCKS), links, settings.get("plan", False))


def plain(goal: Objective, **settings: Any) -> Case:
    return Case(lambda links: goal, **settings)


def mixed(links: nn.ModuleDict) -> Objective:
    return weighted(
        kl=(1.0, soft(jsd, on="mask")),
        ce=(0.5, hard()),
        rkl=(0.2, soft(reverse_kl, 2.0, rescale=True)),
        states=(0.3, hidden(projection=links["map"])),
        relation=(0.4, relation("v", "v", -1, -1)),
    )


def taid(clock: Clock) -> Comparison:
    return Comparison("taid", divergence=partial(interpolated_cross_entropy, share=0.4))


ONE_MAP: dict[str, Any] = {"links": lambda: {"map": nn.Linear(WIDTH, TEACHER)}}
ACROSS: dict[str, Any] = {"teacher": "across"}
ROWS: dict[str, Any] = {"ask": "judge"}
PLACES = "aligned"

CASES: dict[str, dict[str, Case]] = {
    "soft": {
        **{divergence.__name__: plain(soft(divergence)) for divergence in FORMS if divergence.__name__[:5] != "inter"},
        "interpolated": plain(soft(partial(interpolated_cross_entropy, share=0.4))),
        "without a closed form": plain(soft(adaptive_kl)),
        "all real tokens": plain(soft(temperature=2.0, rescale=True, on="mask")),
        "several teachers": plain(soft(temperature=2.0), teacher="members"),
        "rows": plain(soft(on="row"), **ROWS),
    },
    "hard": {"tokens": plain(hard()), "rows": plain(hard(on="row"), **ROWS)},
    "Comparing": {"": plain(Comparing(taid, "taid"))},
    "Named": {"": plain(Named(soft(), "a name"))},
    "weighted": {"": Case(mixed, **ONE_MAP)},
    "over_members": {"": Case(lambda ls: over_members(hidden(projection=ls["map"])), **ONE_MAP, teacher="members")},
    "classes": {"": plain(classes(), **ROWS)},
    "at_exits": {"": plain(at_exits(weighted(words=(1.0, hard()), kl=(0.5, soft())), {1: 0.5, 2: 1.0}))},
    "belongs_together": {"": plain(belongs_together())},
    "finds_its_match": {"": plain(finds_its_match(), alone=False)},
    "interpolated": {"": plain(interpolated(AdaptiveT(0.4, 1.0, 0.1, 0.9)))},
    "hidden": {kind: Case(lambda ls, kind=kind: hidden(kind, projection=ls["map"]), **ONE_MAP) for kind in DISTANCES},
    "pooled": {"": Case(lambda ls: pooled(projection=ls["map"]), **ONE_MAP)},
    "relation": {
        "queries and keys": plain(relation("q", "k", -1, -1, causal=True)),
        "values of other heads": plain(relation("v", "v", -1, -1, heads=1)),
    },
    "Layers": {
        **{name: Case(layers(name), maps if not name.startswith("attention") else dict) for name in FIXED},
        "mi": Case(layers("mi"), lambda: {pair_name(p): mlp_critic(WIDTH, TEACHER, 8, 4) for p in BLOCKS}, alone=False),
        "emd": Case(layers("mse", pairs=every(2, 2), plan=True), lambda: maps(every(2, 2)), alone=False),
    },
    "reconstruction": {"": plain(reconstruction(2))},
    "per_text": {"": plain(per_text(jsd)), "two": plain(per_text(forward_kl, reverse_kl))},
    "uld": {"": plain(uld(), **ACROSS)},
    "spans": {"": plain(spans(), **ACROSS)},
    "shared": {"": Case(lambda links: shared(soft(on=PLACES), *events()), **ACROSS)},
    "in_pieces": {"": Case(lambda links: in_pieces(shared(soft(on=PLACES), *events()), at_once=3), **ACROSS)},
}
FLAT = {f"{name} {more}".strip(): case for name, cases in CASES.items() for more, case in cases.items()}


@cache
def data() -> Batch:
    """Eight rows in two cuts with all that an objective may ask for; places count unevenly."""
    made = collate((list(text_rows(TEXTS * 4, cutter(OURS), cutter(THEIRS), 12)))[:8])
    quota = torch.tensor([1, 2, 0, 0, 9, 4, 9, 2])[:, None]  # rows 2 and 3, a micro-batch of their own, have nothing
    for name in ("answer", "aligned", "teacher_aligned"):
        made[name] = made[name] & (made[name].cumsum(1) <= quota)
    made["targets"] = made["targets"].where(made["answer"] | (made["chunk"] > 0), IGNORE)
    made["mask"] = torch.arange(made["mask"].shape[1]) < torch.tensor([3, 5, 4, 2, 12, 12, 11, 12])[:, None]
    draw = torch.Generator().manual_seed(0)
    made |= {"labels": torch.randint(CLASSES, (8,), generator=draw), "same": torch.arange(8) % 3 == 0}
    made |= {"pixels": torch.rand(8, 1, 4, 4, generator=draw), "masked": torch.arange(4) < quota}
    return made | {"labelled": torch.tensor([1, 0, 0, 0, 1, 1, 1, 1]).bool()}


def parts(number: int) -> list[Batch]:
    """The eight rows as ``number`` batches."""
    chunks = {name: value.chunk(number) for name, value in data().items()}
    return [{name: value[i] for name, value in chunks.items()} for i in range(number)]


def stage_of(name: str, number: int, world: int = 1) -> tuple[Stage, nn.Module]:
    """One step on ``number`` batches, shared by ``world`` processes, and all that learns."""
    case = FLAT[name]
    torch.manual_seed(0)
    ours, theirs = (len(cutter(kind)) for kind in (OURS, THEIRS))
    student, links = Net(ours, WIDTH).double(), nn.ModuleDict(case.links()).double()
    teachers = [Net(theirs if case.teacher == "across" else ours, TEACHER).double() for _ in range(2)]
    says: list[Any] = [getattr(net, case.ask) for net in teachers]
    teacher = {"one": says[0], "across": elsewhere(says[0]), "members": mean_source(says, [0.3, 0.7], 2.0)}
    train: dict[str, nn.Module] = {"student": student, **({"links": links} if len(links) else {})}
    step = distill_step(getattr(student, case.ask), teacher[case.teacher], case.goal(links))
    optim = Optim(lr=1.0, eps=1.0, schedule="constant")
    stage = Stage(name, step, train, parts(number), 1, optim, number // world, clip=None)
    return stage, nn.ModuleDict(train)


def gradients(name: str, number: int, accelerator: Any = None) -> dict[str, Tensor]:
    """The gradient of one optimizer step, read from how far Adam goes: g / (|g| + 1) at its first."""
    from limbeck.core.fit import fit

    stage, learns = stage_of(name, number, accelerator.num_processes if accelerator else 1)
    before = {key: value.detach().clone() for key, value in learns.named_parameters()}
    fit(stage, None, accelerator)
    moved = {key: before[key] - value.detach() for key, value in learns.named_parameters()}
    return {key: value / (1 - value.abs()) for key, value in moved.items()}


def main(out: Path) -> None:
    """Every case under DDP, then under FSDP2, on two processes; the main one writes the gradients."""
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin

    from limbeck.core.save import save_tensors

    found: dict[str, Tensor] = {}
    for mode in MODES:
        accelerator: Any = Accelerator(cpu=True)
        if mode == "fsdp":  # Accelerate shards on accelerators only; the sharding itself runs on CPUs as well
            plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
            accelerator.state._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
        for name in FLAT:
            for key, value in gradients(name, 4, accelerator).items():
                found[f"{mode}/{name}/{key}"] = value.contiguous()
    if accelerator.is_main_process:
        save_tensors(out / "gradients.safetensors", found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
