"""Measure the shipped language model on the atlas's test tasks, without demonstrations and with 16.

``python tools/measure_lm.py`` writes ``quality.json`` beside the weights: scores per partition, mean over tasks.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from limbeck.atlas.tasks import PARTITIONS, partition
from limbeck.context.answer import alone, behind_text
from limbeck.context.collate import Collate
from limbeck.context.evaluate import compare
from limbeck.context.host import Host, load_llm
from limbeck.context.reading import plan_reading
from limbeck.core.save import write_json
from limbeck.methods.context import mend
from limbeck.models.load import place

TASKS, QUERIES, SHOTS = 10, 50, 16


def main() -> None:
    """Measure and write."""
    lm, tokenizer = load_llm(mend.LLM)
    host = Host.of(lm, mend.LLM)
    plan = plan_reading(host.positions, host.positions, 16, layout="metaicl", limit=128, budget=640)
    collate = Collate(tokenizer, host, plan)
    contexts = {
        "zero-shot": lambda demos: alone(lm, tokenizer, collate),
        f"ICL({SHOTS})": lambda demos: behind_text(lm, tokenizer, collate, demos),
    }
    scores: dict[str, dict[str, float]] = {}
    for name in PARTITIONS:
        tasks = partition(name, train_tasks=0, test_tasks=TASKS).test
        results = compare(contexts, tasks, SHOTS, (0,), QUERIES, name)
        scores[name] = {c: round(fmean(r.score for r in results if r.context == c), 3) for c in contexts}
        print(name, scores[name], flush=True)
    said = {
        "made by": "limbeck.atlas.train_lm, seed 0; see LOG.md for how its schedule was found",
        "parameters": sum(p.numel() for p in lm.parameters()),
        "test tasks per partition, queries per task": [TASKS, QUERIES],
        "scores": scores,
    }
    write_json(Path(place(mend.LLM)) / "quality.json", said)


if __name__ == "__main__":
    main()
