"""``limbeck demo``: the main job on the embedded world, in a few minutes on a laptop, with every baseline beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.atlas.tasks import PARTITIONS, partition
from limbeck.context.answer import behind_vectors
from limbeck.context.collate import Collate
from limbeck.context.distiller import Distiller, open_distiller
from limbeck.context.evaluate import Maker, Result, compare, makers, result_table
from limbeck.context.host import load_llm
from limbeck.context.streams import episode_stream
from limbeck.core.check import one_of
from limbeck.core.save import write_atomic
from limbeck.data.tasks import Task, demonstrations
from limbeck.data.templates import Example
from limbeck.methods.context import mend, prompt_tuning
from limbeck.report.results import results_table
from limbeck.report.sections import Examples, Section, Text, Worked
from limbeck.run import Run, begin

TRAIN = "hr_to_lr"  # its training tasks (much-written locales, no amounts) are in no test of the partitions below
JUDGED = ("held_out_task", "held_out_kind", "hr_to_lr")


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck demo``."""

    out: Path = Path("runs/demo")
    """Folder that the run writes."""
    shots: int = 16
    """Demonstrations per task; MEND."""
    steps: int = 100
    """Optimizer steps of stage 2; chosen so that the demo takes a few minutes."""
    batch: int = 8
    """Episodes per step; a choice."""
    asked: int = 8
    """Queries per episode; as many again cost a third more."""
    lr: float = 2e-4
    """Learning rate of stage 2; a choice."""
    prompt_steps: int = 60
    """Optimizer steps of prompt tuning per task; a choice."""
    tasks: int = 4
    """Test tasks per partition."""
    queries: int = 24
    """Queries per test task."""
    worked: int = 6
    """Worked examples in the report."""


def main_demo(cfg: Config) -> Path:
    """Distil demonstrations of unseen tasks with the shipped models, against every baseline, and report."""
    run = begin(cfg, "demo")
    lm, tokenizer = load_llm(mend.LLM)
    train = partition(TRAIN, train_tasks=200, test_tasks=0, seed=cfg.seed).train
    distillers = {
        "CE only": _train(cfg, lm, tokenizer, train, 0.0, run),
        "MEND": _train(cfg, lm, tokenizer, train, 1.0, run),
    }
    length = distillers["MEND"].reading.length
    tuning = prompt_tuning.Config(length, cfg.prompt_steps, 8, 3e-3, cfg.seed)
    contexts = all_contexts(lm, tokenizer, distillers, tuning)
    results: list[Result] = []
    tests = {name: partition(name, train_tasks=0, test_tasks=cfg.tasks, seed=cfg.seed).test for name in JUDGED}
    for name, tasks in tests.items():
        print(f"{name}: {PARTITIONS[one_of(name, PARTITIONS, 'partition')]}", flush=True)
        results += compare(contexts, tasks, cfg.shots, (cfg.seed,), cfg.queries, name)
    table = result_table(results, f"{cfg.shots} demonstrations of tasks that nobody trained on")
    table.print()
    distiller = distillers["MEND"]
    example = tests[JUDGED[0]][0]
    save_vectors(run.out, distiller, example, demonstrations(example, cfg.shots, cfg.seed))
    worked = [item for tasks in tests.values() for item in worked_examples(tasks, results, cfg)][: cfg.worked]
    shown = Examples("Worked examples", worked, f"The first query of a task; of its {cfg.shots} demonstrations, four.")
    sections: list[Section] = [Text("What this shows", ABOUT), results_table(table, COSTS), shown]
    metrics = {name: {c: values[0] for c, values in row.items()} for name, row in table.cells.items()}
    return run.finish(distiller, None, metrics, sections, "the language model that ships with limbeck")


def _train(cfg: Config, lm: Any, tokenizer: Any, train: Sequence[Task], kd: float, run: Any) -> Distiller:
    """The shipped distiller of stage 1 after stage 2, with a teacher (``kd`` 1) or without (0: HyperTuning's loss)."""
    name = "MEND" if kd else "CE only"
    print(f"{name}: stage 2, {cfg.steps} steps of {cfg.batch} episodes", flush=True)
    settings = mend.Config(seed=cfg.seed, steps=cfg.steps, batch=cfg.batch, lr=cfg.lr, shots=cfg.shots, kd=kd)
    distiller = open_distiller(mend.DISTILLER, lm, mend.LLM, tokenizer, layout="metaicl")
    stream = episode_stream(distiller, train, cfg.batch, cfg.shots, cfg.seed, asked=cfg.asked)
    mend.mend(lm, distiller, None, stream, settings, run.stage_dir / name.lower().replace(" ", "-"), run.accelerator)
    return distiller


def all_contexts(
    lm: Any, tokenizer: Any, distillers: Mapping[str, Distiller], tuning: prompt_tuning.Config
) -> dict[str, Maker]:
    """Nothing, the demonstrations' text, vectors tuned on the demonstrations, and vectors of each distiller."""
    collate = next(iter(distillers.values())).collate()
    usual = makers(lm, tokenizer, distillers)
    tuned = {"prompt tuning": lambda demos: behind_vectors(tune(lm, collate, demos, tuning), lm, tokenizer)}
    return {name: usual.pop(name) for name in ("zero-shot", "ICL")} | tuned | usual


def tune(lm: Any, collate: Collate, demos: Sequence[Example], cfg: prompt_tuning.Config) -> Any:
    """Vectors by prompt tuning on the very examples that the others are shown."""
    return prompt_tuning.prompt_tuning(lm, collate, list(demos), cfg)


def save_vectors(out: Path, distiller: Distiller, task: Task, demos: Sequence[Example]) -> None:
    """One task's vectors, and the demonstrations that they stand for in the format that ``limbeck context`` reads."""
    rows = [{"task": d.task, "input": d.input, "output": d.output, "options": list(d.options)} for d in demos]
    write_atomic(out / "demos.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    distiller.distill(demos).save(out / "vectors.safetensors")


def worked_examples(tasks: Sequence[Task], results: Sequence[Result], cfg: Config) -> list[Worked]:
    """The first query of each task, with what every context answered."""
    found = []
    for task in tasks:
        demos = demonstrations(task, cfg.shots, cfg.seed)
        query = task.test[0]
        answers = {r.context: r.answers[0] for r in results if r.task == task.name}
        shown = [(demo.input, demo.output) for demo in demos[:4]]
        found.append(Worked(query.input, query.output, answers, shown, task.name))
    return found


ABOUT = """The language model is frozen. Only the demonstrations say what a task asks for, so without them (zero-shot) \
it can but guess; in-context learning (ICL) reads all of them before every query. MEND's distiller reads them once and \
writes 28 vectors that the same model reads instead; CE only is the same distiller with a stage 2 \
that has no teacher (HyperTuning's loss), prompt tuning trains 28 vectors on the demonstrations themselves.

No test task was in anybody's training: not in the language model's, not in stage 1, which saw other tasks of all \
kinds, and not in stage 2, whose tasks are those of the partition hr_to_lr: locales with much text, no amounts."""

COSTS = """Scores are accuracy, or macro-F1 where a task is classification, averaged over tasks. Per query: positions \
that the context takes, operations (MFLOP) to read context and query without a cache, key-value cache (KV kB), and \
milliseconds with the context read once. One seed: claims/mend.py has three."""

COMMANDS = {"demo": main_demo}
