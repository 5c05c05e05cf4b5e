"""SeqKD against the original data: a small model of spelling learns to translate words from a larger one.

English words to Spanish ones, letter by letter, from the Open Multilingual Wordnet. A word has several translations,
and many cannot be guessed from its letters: the targets have many modes, which is what Kim and Rush (2016) say a small
student cannot hold and a teacher's beams do away with. One Llama teacher learns the data. Students of one layer start
alike and get the same words, batches, steps and learning rate (tuned for the original data): on the data itself
(``sft``), on the teacher's best beam (``beam``), on text drawn from it (``sample``), on the beam nearest to the data
(``nearest``, Seq-Inter). They are judged on words that nobody trained on, against all their translations.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from difflib import SequenceMatcher
from pathlib import Path
from random import Random
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import arguments, needed, summary, verdict, wins, write_result
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from limbeck.core.stage import freeze
from limbeck.data.model_writer import Decoding, ModelWriter
from limbeck.data.pairs import Pair, pair_batches, read_pairs
from limbeck.data.written import Prompt, put_together, write_down
from limbeck.losses.divergence import cross_entropy
from limbeck.methods.language_models.seqkd import Config, learn
from limbeck.sources.model import model_source

SETTING = {
    "data": "omw, eng to spa",
    "words": {"train": 6000, "test": 500},
    "teacher": {"layers": 3, "width": 96, "steps": 1200, "lr": 3e-3, "words": 9000},
    "student": {"layers": 1, "width": 32, "steps": 500, "lr": 1e-2},
    "batch": 64,
    "beams": 5,
    "new_tokens": 16,
}
METHODS = ("sft", "beam", "sample", "nearest")
END, LENGTH = "[END]", 40


def translations(english: Path, spanish: Path) -> dict[str, list[str]]:
    """Every English word with its Spanish ones, single words in lower case."""
    ours, theirs = (lemmas(path, letters) for path, letters in ((english, "a-z"), (spanish, "a-záéíóúüñ")))
    found: dict[str, set[str]] = defaultdict(set)
    for synset, words in ours.items():
        for word in words:
            found[word] |= theirs.get(synset, set())
    return {word: sorted(others) for word, others in sorted(found.items()) if others}


def lemmas(path: Path, letters: str) -> dict[str, set[str]]:
    fits, found = re.compile(rf"[{letters}]{{3,12}}"), defaultdict(set)
    for line in path.read_text(encoding="utf-8").splitlines():
        parts = line.split("\t")
        if len(parts) == 3 and parts[1].endswith(":lemma") and fits.fullmatch(parts[2]):
            found[parts[0]].add(parts[2])
    return found


def tokenizer_of(words: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    """One token per letter; ``>`` parts a word from its translation."""
    seen = sorted(set("".join([*words, *(other for others in words.values() for other in others)])))
    core = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(["[UNK]", END, ">", *seen])}, unk_token="[UNK]")
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token=END, pad_token=END)


def model(vocabulary: int, layers: int, width: int, **_: Any) -> LlamaForCausalLM:
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    ends = {"eos_token_id": 1, "pad_token_id": 1, "bos_token_id": None}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, num_attention_heads=4, max_position_embeddings=64, **sizes, **ends)
    )


def of_the_data(words: Sequence[str], known: dict[str, list[str]], tokenizer: Any) -> list[Pair]:
    """Every word with each of its translations."""
    end = [tokenizer.eos_token_id]
    ids = {text: tokenizer(text)["input_ids"] for word in words for text in (f"{word}>", *known[word])}
    return [Pair(ids[f"{word}>"], ids[other] + end) for word in words for other in known[word]]


def by_the_teacher(
    method: str, words: Sequence[str], known: dict, teacher: Any, tokenizer: Any, seed: int
) -> list[Pair]:
    """What the teacher writes for every word."""
    samples = SETTING["beams"] if method == "nearest" else 1
    decode = "sample" if method == "sample" else "beam"
    how = Decoding(decode, SETTING["new_tokens"], samples, SETTING["beams"], seed=seed)
    prompts = [Prompt(f"{word}>", "|".join(known[word])) for word in words]
    near = (lambda text, own: likeness(text, own.split("|"))) if method == "nearest" else None
    with TemporaryDirectory() as folder:
        write_down(prompts, ModelWriter(teacher, tokenizer, how, batch=256), Path(folder), {}, chunk=1024)
        return read_pairs(put_together(prompts, Path(folder), nearest=near), tokenizer, LENGTH)


def train(lm: nn.Module, pairs: list[Pair], steps: int, lr: float, seed: int) -> None:
    cfg = Config(steps=steps, batch=SETTING["batch"], lr=lr, seed=seed)
    learn(lm, pair_batches(pairs, cfg.batch, seed), cfg)
    lm.eval()


def likeness(text: str, others: Sequence[str]) -> float:
    """How near a text is to the nearest of ``others``, from 0 to 1, by letters in common."""
    return max(SequenceMatcher(None, text, other).ratio() for other in others)


@torch.no_grad()
def judge(lm: Any, words: Sequence[str], known: dict[str, list[str]], tokenizer: Any) -> dict[str, float]:
    """On words: likeness and exact matches of greedy translations, what beams add, how sure the model is of its own."""
    prompts = [f"{word}>" for word in words]
    said = {}
    for decode in ("greedy", "beam"):
        how = Decoding(decode, SETTING["new_tokens"], beams=SETTING["beams"])
        said[decode] = [text for [(text, _)] in ModelWriter(lm, tokenizer, how, batch=256)(prompts, 0)]
    near = {decode: fmean(map(likeness, texts, (known[word] for word in words))) for decode, texts in said.items()}
    exact = fmean(text in known[word] for text, word in zip(said["greedy"], words, strict=True))
    texts = zip(prompts, said["greedy"], strict=True)
    own = [Pair(tokenizer(prompt)["input_ids"], tokenizer(text + END)["input_ids"]) for prompt, text in texts]
    batch = pair_batches(own, len(own)).take(1)[0]
    values = cross_entropy(model_source(lm)(batch).logits_at(batch["answer"]), batch["targets"][batch["answer"]])
    sure = torch.zeros(len(own)).index_add(0, batch["answer"].nonzero()[:, 0], -values).exp().mean()
    gain = near["beam"] - near["greedy"]
    return {"likeness": near["greedy"], "exact": exact, "beam_gain": gain, "p_own": float(sure)}


def checks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    seeds = len({row["seed"] for row in rows})

    def check(claim: str, metric: str, lower: str, higher: str) -> dict[str, Any]:
        won = wins(rows, metric, lower, higher)
        return {"claim": claim, "holds": won == seeds, "seen": f"{won} of {seeds} seeds"}

    return [
        check("greedy translations are nearer to the true ones after the teacher's beams", "likeness", "sft", "beam"),
        check("and after the beams nearest to the data (Seq-Inter)", "likeness", "sft", "nearest"),
        check("the student is surer of its own translations", "p_own", "sft", "beam"),
        check("and a beam search adds less to them", "beam_gain", "beam", "sft"),
    ]


def main() -> None:
    args = arguments(__doc__)
    known = translations(*needed(args.data, "omw/wn-wikt-eng.tab", "omw/wn-wikt-spa.tab"))
    tokenizer, order = tokenizer_of(known), sorted(known)
    Random(0).shuffle(order)
    test, rest = order[: SETTING["words"]["test"]], order[SETTING["words"]["test"] :]
    torch.manual_seed(0)
    teacher, size = model(len(tokenizer), **SETTING["teacher"]), SETTING["teacher"]
    train(teacher, of_the_data(rest[: size["words"]], known, tokenizer), size["steps"], size["lr"], 0)
    freeze(teacher)
    theirs = judge(teacher, test, known, tokenizer)
    print("teacher", theirs, flush=True)
    words, rows = rest[: SETTING["words"]["train"]], []
    texts = {method: by_the_teacher(method, words, known, teacher, tokenizer, 0) for method in ("beam", "nearest")}
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        start, size = model(len(tokenizer), **SETTING["student"]), SETTING["student"]
        texts |= {"sft": of_the_data(words, known, tokenizer)}
        texts |= {"sample": by_the_teacher("sample", words, known, teacher, tokenizer, seed)}
        for method in METHODS:
            student = deepcopy(start)
            train(student, texts[method], size["steps"], size["lr"], seed)
            rows.append({"seed": seed, "method": method, **judge(student, test, known, tokenizer)})
            print(rows[-1], flush=True)
    found = checks(rows)
    result = {"claim": "a small student learns more from its teacher's best text than from the data", "rows": rows}
    setting = SETTING | {"teacher on test words": {name: round(value, 4) for name, value in theirs.items()}}
    means = {"summary": summary(rows), "checks": found, "verdict": verdict(found)}
    write_result(args.out, "seqkd", {**result, "setting": setting, **means})


if __name__ == "__main__":
    main()
