"""Trimming a model of XLM-R's size (250,002 x 768, 12 layers) to 60,000 tokens: memory and time.

Model and tokenizer are made here, at random. Every measurement is a process of its own, ours and the other taking
turns.

- ``memory``: what the process grew to while trimming, from the moment that model and tokenizer were loaded, as a share
  of the model's memory: (model + growth) / model. Target: at most 1.3.
- ``seconds`` of one processor: trimming model and tokenizer, in memory; ``checked`` with the verification on texts.
- the other: lm-vocab-trimmer's way, written anew from its description, because the released package does not import
  beside today's huggingface_hub: new tables, ``resize_token_embeddings``, saving and loading the whole model, and a
  search through a list for every piece of the old vocabulary. That search is quadratic; it is timed on a sample of
  pieces and scaled up. Its ``seconds`` are the sum.

Medians over the runs go to ``benchmarks/results/vocabulary.json``. Takes some minutes and 4 GB::

    python benchmarks/vocabulary.py [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

TARGET = 1.3
PIECES, KEPT, WIDTH, LAYERS = 250_002, 60_000, 768, 12
SAMPLE = 1000  # pieces that are searched for in the list
RESULT = Path(__file__).parent / "results" / "vocabulary.json"
LETTERS = "aeioubcdfghlmnprstvz"


def make_tokenizer() -> Any:
    """A Unigram tokenizer of XLM-R's make with 250,002 different pieces, every letter among them."""
    from transformers import XLMRobertaTokenizer

    draw = random.Random(0)
    pieces = dict.fromkeys(["▁", *LETTERS])
    while len(pieces) < PIECES - 5:
        pieces["▁" * draw.randint(0, 1) + "".join(draw.choices(LETTERS, k=draw.randint(2, 8)))] = None
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    scored = [(piece, -5.0 - 1e-5 * rank) for rank, piece in enumerate(pieces)]
    return XLMRobertaTokenizer(vocab=[*special, *scored, ("<mask>", 0.0)])


def make_model() -> Any:
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = XLMRobertaConfig(vocab_size=PIECES, hidden_size=WIDTH, num_hidden_layers=LAYERS)
    return XLMRobertaForMaskedLM(config).eval()


def resident(field: str) -> int:
    """Bytes of this process now (``VmRSS``) or at most since the mark was reset (``VmHWM``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Watch:
    """Processor seconds, and the memory that this process grew to as a share of the model's, since it was made."""

    def __init__(self, model: Any) -> None:
        self.size = sum(p.numel() * p.element_size() for p in model.parameters())
        Path("/proc/self/clear_refs").write_text("5")  # the mark of the most memory begins anew
        self.before, self.start = resident("VmRSS"), time.process_time()

    def read(self) -> tuple[float, float]:
        """Both, up to now."""
        return time.process_time() - self.start, (self.size + resident("VmHWM") - self.before) / self.size


def ours() -> dict[str, float]:
    from limbeck.students.unchanged import check_same_logits
    from limbeck.students.vocabulary import table_sizes, trim_vocabulary

    model, tokenizer = make_model(), make_tokenizer()
    texts = [" ".join(random.Random(i).choices(LETTERS, k=12)) for i in range(50)]
    used = {i for ids in tokenizer(texts)["input_ids"] for i in ids}
    keep = sorted(used | set(random.Random(1).sample(range(PIECES), KEPT - len(used))))
    watch = Watch(model)
    small, small_tokenizer = trim_vocabulary(model, tokenizer, keep)
    seconds, memory = watch.read()
    covered = check_same_logits(model, tokenizer, small, small_tokenizer, texts)
    seconds_checked, memory_checked = watch.read()
    return {
        "seconds": seconds,
        "memory": memory,
        "seconds_checked": seconds_checked,
        "memory_checked": memory_checked,
        "texts_checked": covered,
        "tokens": len(small_tokenizer),
        "parameters_before": table_sizes(model)["parameters"],
        "parameters_after": table_sizes(small)["parameters"],
    }


def theirs() -> dict[str, float]:
    """lm-vocab-trimmer's way, step by step; the list search is scaled up from a sample."""
    model, tokenizer = make_model(), make_tokenizer()
    keep = sorted(random.Random(1).sample(range(PIECES), KEPT))
    watch = Watch(model)
    with TemporaryDirectory() as folder:
        model = new_tables(model, keep, folder)
    tables, memory = watch.read()
    start = time.process_time()
    names = tokenizer.convert_ids_to_tokens(keep)
    vocab = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    reading = time.process_time() - start
    start = time.process_time()
    found = [piece for piece, _ in random.Random(2).sample(vocab, SAMPLE) if piece in names]
    search = (time.process_time() - start) * len(vocab) / SAMPLE
    assert found
    kept = set(names)
    start = time.process_time()
    rebuilt(tokenizer, [tuple(entry) for entry in vocab if entry[0] in kept])
    rebuilding = time.process_time() - start
    parts = {"tables": tables, "search": search, "tokenizer": reading + rebuilding}
    return {"seconds": sum(parts.values()), "memory": memory, **parts}


def new_tables(model: Any, keep: list[int], folder: str) -> Any:
    """Input and output tables anew, then the whole model to disk and back."""
    import torch

    table, head = model.get_input_embeddings().weight[keep], model.get_output_embeddings()
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(table))
    linear = torch.nn.Linear(WIDTH, len(keep))
    with torch.no_grad():
        linear.weight.copy_(head.weight[keep])
        linear.bias.copy_(head.bias[keep])
    model.set_output_embeddings(linear)
    model.config.vocab_size = len(keep)
    model.resize_token_embeddings(len(keep))
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, ignore_mismatched_sizes=True)


def rebuilt(tokenizer: Any, vocab: list[tuple[str, float]]) -> None:
    """The tokenizer's model from the shorter list."""
    from tokenizers.models import Unigram

    tokenizer.backend_tokenizer.model = Unigram(vocab, unk_id=3)


def apart(side: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--side", side], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    print(side, done.stdout.strip().splitlines()[-1], flush=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(median(run[name] for run in runs), 3) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "theirs"))
    args = parser.parse_args()
    if args.side:
        print(json.dumps({"ours": ours, "theirs": theirs}[args.side]()))
        return
    pairs = [(apart("ours"), apart("theirs")) for _ in range(args.runs)]
    us, them = (medians([pair[i] for pair in pairs]) for i in (0, 1))
    result = {
        "model": {"rows": PIECES, "width": WIDTH, "layers": LAYERS, "kept": KEPT},
        "runs": args.runs,
        "target_memory": TARGET,
        "within_target": max(pair[0]["memory_checked"] for pair in pairs) <= TARGET,
        "limbeck": us,
        "lm-vocab-trimmer's way": them,
        "times_faster": round(them["seconds"] / us["seconds"], 1),
        "times_faster_without_search": round((them["seconds"] - them["search"]) / us["seconds"], 2),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
