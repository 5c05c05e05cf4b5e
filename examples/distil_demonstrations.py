"""Sixteen demonstrations into a few vectors, with the models that ship with limbeck.

``python examples/distil_demonstrations.py`` needs no download.
The task is one of the atlas that no model has seen. The frozen language model answers its queries three times: without
demonstrations, with their text, and with the vectors.
"""

from __future__ import annotations

from limbeck import Distiller
from limbeck.atlas.tasks import partition
from limbeck.context.answer import alone, behind_text, behind_vectors
from limbeck.context.host import load_llm
from limbeck.data.tasks import demonstrations


def main() -> None:
    """Distil, answer, compare."""
    lm, tokenizer = load_llm("limbeck:atlas/weights/lm")
    distiller = Distiller.from_pretrained("limbeck:atlas/weights/distiller")
    task = partition("held_out_task", train_tasks=0, test_tasks=1).test[0]
    demos = demonstrations(task, shots=16)
    vectors = distiller.distill(demos)
    print(f"{task.name}: {vectors.tokens} tokens of demonstrations became {len(vectors.tensor)} vectors")
    collate = distiller.collate()
    contexts = {
        "zero-shot": alone(lm, tokenizer, collate),
        "demonstrations": behind_text(lm, tokenizer, collate, demos),
        "vectors": behind_vectors(vectors, lm, tokenizer),
    }
    for name, context in contexts.items():
        answers = context.answers(task.test)
        right = sum(answer == row.output for answer, row in zip(answers, task.test, strict=True))
        print(f"{name:<15} {right} of {len(task.test)} right, {context.positions} positions before every query")


if __name__ == "__main__":
    main()
