"""``limbeck context``: demonstrations into vectors, answers from vectors, and whether vectors do what the text does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from limbeck.atlas.tasks import partitions as atlas_partitions
from limbeck.context.answer import behind_vectors
from limbeck.context.distiller import Distiller
from limbeck.context.evaluate import Result, Split, check_task, compare, makers, result_table, split_tasks
from limbeck.context.vectors import Vectors
from limbeck.core.check import require
from limbeck.core.device import Device, pick
from limbeck.core.save import make_folder, write_atomic, write_json
from limbeck.data.tasks import read_examples, read_tasks
from limbeck.data.tasks import seeds as seeds_of


@dataclass(frozen=True)
class Distill:
    """Settings of ``limbeck context distill``."""

    distiller: str
    """Folder of a distiller, such as one that limbeck mend wrote."""
    demos: Path
    """Demonstrations: JSON lines with task, input, output and, where there is a choice, options."""
    out: Path
    """File to write, ending in .safetensors."""
    peft: Path | None = None
    """Folder for a PEFT prompt-tuning adapter of the same vectors."""
    device: Device = "auto"
    """Where to compute; auto: on an accelerator if there is one."""


@dataclass(frozen=True)
class Complete:
    """Settings of ``limbeck context complete``."""

    vectors: Path
    """Vectors that limbeck context distill wrote."""
    input: str
    """The query."""
    options: str = ""
    """Answers to choose from, separated by commas; empty: the LLM writes."""
    distiller: str | None = None
    """Folder of the distiller that made the vectors, to have that checked."""
    tokens: int = 32
    """Most tokens of a written answer."""
    llm: str | None = None
    """Folder or Hub id of the LLM, if it no longer is where it was when the vectors were made."""
    device: Device = "auto"
    """Where to compute; auto: on an accelerator if there is one."""


@dataclass(frozen=True)
class Evaluate:
    """Settings of ``limbeck context evaluate``."""

    distiller: str
    """Folder of a distiller, such as one that limbeck mend wrote."""
    out: Path
    """Folder for table.md and results.json (scores, costs and answers)."""
    tasks: Path | None = None
    """Folder of tasks in MetaICL's format; by default the tasks of the atlas."""
    partition: str = "all"
    """<tasks>/partitions/<name>.json or one of the atlas; all: every task, every partition."""
    shots: int = 16
    """Demonstrations per task; MetaICL and MEND: 16."""
    seeds: tuple[int, ...] = ()
    """Draws of demonstrations; by default those in the files' names (MetaICL: 13 21 42 87 100), else 0 1 2."""
    queries: int | None = None
    """Most queries per task; by default all."""
    llm: str | None = None
    """Folder or Hub id of the LLM, if it no longer is where it was when the distiller was made."""
    device: Device = "auto"
    """Where to compute; auto: on an accelerator if there is one."""


def distill(cfg: Distill) -> None:
    """Demonstrations into vectors: writes a .safetensors file."""
    require(cfg.out.suffix == ".safetensors", f"--out {cfg.out}: expected a file that ends in .safetensors")
    device, demos = pick(cfg.device), read_examples(cfg.demos)
    vectors = Distiller.from_pretrained(cfg.distiller).to(device).distill(demos)
    vectors.save(cfg.out)
    if cfg.peft is not None:
        vectors.to_peft(cfg.peft)
    shorter = vectors.tokens / vectors.length
    print(f"{cfg.out}: {vectors.length} vectors in place of {vectors.tokens} tokens ({shorter:.1f}x shorter)")
    if vectors.demonstrations < len(demos):
        print(f"read {vectors.demonstrations} of {len(demos)} demonstrations; no more fit the distiller's budget")


def complete(cfg: Complete) -> None:
    """Answer a query from vectors: the best option, or what the LLM writes."""
    options = [option.strip() for option in cfg.options.split(",")] if cfg.options else []
    require(len(options) != 1, f"--options {cfg.options!r}: expected two or more options, separated by commas, or none")
    require(cfg.input.strip(), "--input is empty; a query needs text")
    device, vectors = pick(cfg.device), Vectors.load(cfg.vectors)
    if cfg.distiller is not None:
        host = Distiller.from_pretrained(cfg.distiller).host
        require(
            host.fingerprint == vectors.host.fingerprint,
            f"{cfg.vectors} was made for {vectors.host.llm}, but the distiller in {cfg.distiller} writes for another "
            f"LLM ({host.llm}); give the one that made the vectors",
        )
    answerer = behind_vectors(vectors, *vectors.host.load(str(cfg.vectors), cfg.llm, device))
    if not options:
        print(answerer.complete(cfg.input, tokens=cfg.tokens))
        return
    scores = answerer.score(cfg.input, options)
    for option in sorted(scores, key=scores.__getitem__, reverse=True):
        print(f"{option}\t{scores[option]:.4f}")


def evaluate(cfg: Evaluate) -> None:
    """Zero-shot, the demonstrations' text and vectors, compared on tasks: scores and costs in one table."""
    require(cfg.queries is None or cfg.queries >= 1, f"--queries {cfg.queries}: expected a number of at least 1")
    device, distiller = pick(cfg.device), Distiller.from_pretrained(cfg.distiller)
    seeds = cfg.seeds or _seeds(cfg.tasks)
    splits = {seed: _splits(cfg, seed) for seed in seeds}
    for task in (task for parts in splits.values() for part in parts for task in part.test):
        check_task(task, cfg.shots)
    make_folder(cfg.out)
    lm, tokenizer = distiller.host.load(f"the distiller in {cfg.distiller}", cfg.llm, device)
    contexts = makers(lm, tokenizer, {"vectors": distiller.to(device)})
    results: list[Result] = []
    for seed, parts in splits.items():
        for part in parts:
            results += compare(contexts, part.test, cfg.shots, (seed,), cfg.queries, part.name)
    _write(cfg, results)


def _seeds(tasks: Path | None) -> Sequence[int]:
    return (seeds_of(tasks) if tasks is not None else []) or (0, 1, 2)


def _splits(cfg: Evaluate, seed: int) -> list[Split]:
    """The partitions asked for, with the demonstrations of one seed."""
    if cfg.tasks is not None:
        return [split_tasks(read_tasks(cfg.tasks, seed, cfg.shots), cfg.partition, cfg.tasks)]
    return [Split(part.name, [], part.test) for part in atlas_partitions(cfg.partition, train_tasks=0, seed=seed)]


def _write(cfg: Evaluate, results: Sequence[Result]) -> None:
    table = result_table(results, f"{cfg.shots} demonstrations as text and as vectors")
    table.print()
    write_atomic(cfg.out / "table.md", table.markdown())
    rows = [asdict(result) for result in results]
    write_json(cfg.out / "results.json", {"distiller": cfg.distiller, "table": table.data(), "rows": rows})
    print(f"wrote {cfg.out / 'table.md'} and {cfg.out / 'results.json'}")


COMMANDS = {"distill": distill, "complete": complete, "evaluate": evaluate}
