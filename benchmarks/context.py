"""What a query costs under three contexts: the demonstrations' text, the same text read once, and MEND's vectors.

One randomly initialised GPT-2 and 16 demonstrations of 40 to 60 tokens; ICL reads them before every query ("ICL"), or
keeps the keys and values of one reading ("ICL, cached prefix"); MEND reads 100 vectors, afresh or cached likewise. The
distiller is a GPT-2 of half the width and half the layers. All take turns within one run, query by query, so that
whatever else the machine does falls on all alike; times are medians. FLOPs are counted by PyTorch and computed from the
formula of ``context.costs``. Writes ``benchmarks/results/context.json``.

    python benchmarks/context.py [--rounds 15]

Targets, beside ICL without a cache: at most a quarter of the FLOPs, 4 times as fast, at most a quarter of the KV bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from limbeck.context.costs import cache_bytes, prefill, shape_of
from limbeck.context.distiller import Distiller
from limbeck.context.host import Host
from limbeck.context.reading import Reading
from limbeck.evaluation.cache import repeated

DEMONSTRATIONS, TOKENS, QUERY, LENGTH = 16, (40, 60), 32, 100
VOCABULARY, POSITIONS = 8192, 1024
HERE = Path(__file__).parent
LESS_FLOPS, FASTER, LESS_CACHE = 0.25, 4.0, 0.25


def gpt2(width: int, layers: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=width,
        n_layer=layers,
        n_head=width // 64,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def prefix_cache(lm: Any, embeds: Tensor) -> Any:
    return lm(inputs_embeds=embeds, use_cache=True, logits_to_keep=1).past_key_values


def answer(lm: Any, query: Tensor, embeds: Tensor | None = None, cache: Any = None) -> Tensor:
    """Logits of the token after the query: behind embeddings, or behind a cache of them."""
    if cache is not None:
        return lm(query, past_key_values=repeated(cache, 1), use_cache=True, logits_to_keep=1).logits
    joined = torch.cat([embeds, lm.get_input_embeddings()(query)], 1)
    return lm(inputs_embeds=joined, use_cache=False, logits_to_keep=1).logits


def flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def seconds(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Times of every call on the clock and on the processor, taken in turns after two rounds that do not count."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            clock, processor = time.perf_counter(), time.process_time()
            call()
            if turn > 1:
                found[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return found


@torch.no_grad()
def measure(width: int, layers: int, rounds: int) -> dict[str, Any]:
    rng = random.Random(0)
    tokens = sum(rng.randint(*TOKENS) for _ in range(DEMONSTRATIONS))
    lm, small = gpt2(width, layers), gpt2(width // 2, layers // 2)
    distiller = Distiller(small.transformer, Host.of(lm, "random"), Reading(length=LENGTH)).eval()
    demos, query = (torch.randint(VOCABULARY, (1, size)) for size in (tokens, QUERY))
    present, text = torch.ones_like(demos), lm.get_input_embeddings()(demos)
    vectors = distiller(demos, present)
    caches = {"text": prefix_cache(lm, text), "vectors": prefix_cache(lm, vectors)}
    calls = {
        "ICL": lambda: answer(lm, query, text),
        "ICL, cached prefix": lambda: answer(lm, query, cache=caches["text"]),
        "MEND": lambda: answer(lm, query, vectors),
        "MEND, cached prefix": lambda: answer(lm, query, cache=caches["vectors"]),
        "distilling, once": lambda: distiller(demos, present),
        "reading the text into a cache, once": lambda: prefix_cache(lm, text),
        "reading the vectors into a cache, once": lambda: prefix_cache(lm, vectors),
    }
    taken = seconds(calls, rounds)
    medians = {name: [1e3 * median(values) for values in zip(*pairs, strict=True)] for name, pairs in taken.items()}
    found = {name: {"ms": clock, "processor_ms": processor} for name, (clock, processor) in medians.items()}
    lm.set_attn_implementation("eager")  # so that the counter sees the attention's products
    small.set_attn_implementation("eager")
    for name, call in calls.items():
        found[name]["flops_counted"] = flops(call)
    for name, value in formula(lm, small, distiller, tokens).items():
        found[name]["flops_formula"] = value
    for name, positions in {"ICL": tokens, "MEND": LENGTH}.items():
        for row in (name, f"{name}, cached prefix"):
            found[row] |= {"context_positions": positions, "kv_bytes": cache_bytes(lm, positions + QUERY)}
    sizes = {"width": width, "layers": layers, "parameters": sum(p.numel() for p in lm.parameters())}
    return {
        "llm": sizes,
        "demonstration_tokens": tokens,
        "query_tokens": QUERY,
        "costs": found,
        **compare(found, lm, tokens),
    }


def formula(lm: Any, small: Any, distiller: Distiller, tokens: int) -> dict[str, int]:
    shape, projection = shape_of(lm), distiller.projection.weight.numel() if distiller.projection else 0
    reading = shape_of(small.transformer).flops(tokens + LENGTH) + 2 * projection * LENGTH
    return {
        "ICL": prefill(lm, tokens, QUERY),
        "ICL, cached prefix": shape.flops(QUERY, past=tokens, logits=1),
        "MEND": prefill(lm, LENGTH, QUERY),
        "MEND, cached prefix": shape.flops(QUERY, past=LENGTH, logits=1),
        "distilling, once": reading,
        "reading the text into a cache, once": shape.flops(tokens, logits=1),
        "reading the vectors into a cache, once": shape.flops(LENGTH, logits=1),
    }


def compare(costs: dict[str, dict[str, float]], lm: Any, tokens: int) -> dict[str, Any]:
    """MEND beside ICL, and after how many queries distilling has paid for itself."""
    icl, mend = costs["ICL"], costs["MEND"]
    ratios = {
        "flops": mend["flops_counted"] / icl["flops_counted"],
        "speed": icl["ms"] / mend["ms"],
        "speed_by_processor_time": icl["processor_ms"] / mend["processor_ms"],
        "kv_bytes_of_context": cache_bytes(lm, LENGTH) / cache_bytes(lm, tokens),
        "kv_bytes_with_query": mend["kv_bytes"] / icl["kv_bytes"],
        "cached_flops": costs["MEND, cached prefix"]["flops_counted"] / costs["ICL, cached prefix"]["flops_counted"],
        "cached_speed": costs["ICL, cached prefix"]["ms"] / costs["MEND, cached prefix"]["ms"],
    }
    once = costs["distilling, once"]
    pays = {kind: math.ceil(once[kind] / (icl[kind] - mend[kind])) for kind in ("flops_counted", "ms")}
    holds = {
        "at least 75 % fewer FLOPs": ratios["flops"] <= LESS_FLOPS,
        "at least 4 times as fast": ratios["speed"] >= FASTER,
        "at most a quarter of the KV bytes": ratios["kv_bytes_of_context"] <= LESS_CACHE,
    }
    return {"MEND beside ICL": ratios, "queries until distilling has paid": pays, "targets": holds}


def main() -> None:
    """Measure one size, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "context.json")
    args = parser.parse_args()
    said = measure(args.width, args.layers, args.rounds)
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**said, "rounds": args.rounds, "on": machine}, indent=1) + "\n")
    for name, row in said["costs"].items():
        kv = f"{row['kv_bytes'] / 1e6:8.2f} MB of KV" if "kv_bytes" in row else ""
        print(f"{name:<40} {row['flops_counted'] / 1e9:8.2f} GFLOP {row['ms']:9.1f} ms {kv}")
    print(said["MEND beside ICL"], said["queries until distilling has paid"], sep="\n")
    for target, holds in said["targets"].items():
        print(f"{'holds' if holds else 'FAILS'}: {target}")


if __name__ == "__main__":
    main()
