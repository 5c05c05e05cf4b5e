"""Vocabulary trimming to one language of four: nothing lost until running tokens are lost, and random tokens far worse.

Text in English, German, Romanian and Turkish (XQuAD paragraphs, Universal Dependencies), a Unigram tokenizer of 4,000
pieces and a masked LM of two layers (ModernBERT), trained on all four. Trimmed to Romanian by counting Romanian
training text, at several sizes. Measured on other Romanian sentences, which no tokenizer and no model has seen: words
are hidden whole, all pieces at once, the same words for every model. ``restored``: the share whose every piece is the
model's first choice. ``bits``: per character of hidden words; a word with an unknown character is charged as if spelled
by chance (all characters of the training text alike). Many small pieces tell a model how long a hidden word is, which
makes its bits look better than they are; restoring them all is the harder for it.

Baselines: the model as it was; the same number of random tokens, of all four languages or of those that Romanian uses;
the most frequent tokens of the training mix; a model of the same size trained from scratch on Romanian alone with a
tokenizer of its own, for as many steps. ``healed`` is the second smallest after distillation from the original.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, needed, summary, verdict, wins, write_result
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

from limbeck.core.fit import fit
from limbeck.core.signals import Signals
from limbeck.core.stage import Optim, Stage
from limbeck.data.stream import lengths_mask, mlm_batches, pad
from limbeck.methods.multilingual.vocab_trim import Config, heal, healing
from limbeck.objectives.tokens import hard
from limbeck.sources.model import model_source
from limbeck.students.rows import vocabulary_tensors
from limbeck.students.unchanged import check_same_logits
from limbeck.students.vocabulary import count_tokens, coverage, kept_rows, most_frequent, trim_vocabulary

SETTING = {
    "data": "xquad (en, de, ro, tr), ud (en_ewt, ro_rrt, en_pud, de_pud, tr_pud)",
    "vocabulary": 4000,
    "model": {"layers": 2, "width": 96, "heads": 4},
    "steps": 2500,
    "batch": 32,
    "length": 48,
    "lr": 3e-3,
    "masking": 0.3,
    "hidden_words": 0.15,
    "heal": {"steps": 200, "lr": 1e-3},
}
Hidden = tuple[list[str], list[int]]  # words, and which of them are hidden
Test = tuple[Sequence[Hidden], float]  # hidden words, and bits of a character by chance
SHARES = (0.5, 0.25, 0.1)
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def read(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Training text by language, and held-out Romanian sentences."""
    names = {
        "en": ("xquad/xquad.en.json", "ud/en_ewt-ud-dev.conllu", "ud/en_pud-ud-test.conllu"),
        "de": ("xquad/xquad.de.json", "ud/de_pud-ud-test.conllu"),
        "ro": ("xquad/xquad.ro.json", "ud/ro_rrt-ud-dev.conllu"),
        "tr": ("xquad/xquad.tr.json", "ud/tr_pud-ud-test.conllu"),
    }
    texts = {language: [t for path in needed(folder, *files) for t in lines(path)] for language, files in names.items()}
    return texts, lines(*needed(folder, "ud/ro_rrt-ud-test.conllu"))


def lines(path: Path) -> list[str]:
    """Sentences of a CoNLL-U file, or paragraphs and questions of XQuAD."""
    whole = path.read_text(encoding="utf-8")
    if path.suffix == ".conllu":
        return [line.removeprefix("# text = ") for line in whole.splitlines() if line.startswith("# text = ")]
    paragraphs = [p for article in json.loads(whole)["data"] for p in article["paragraphs"]]
    return [text for p in paragraphs for text in (p["context"], *(qa["question"] for qa in p["qas"]))]


def unigram(texts: Sequence[str], size: int) -> Any:
    """A Unigram tokenizer in the manner of XLM-R."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    core = Tokenizer(models.Unigram())
    core.normalizer, core.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    core.train_from_iterator(texts, trainer)
    ends = [("<s>", 0), ("</s>", 2)]
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def train(texts: Sequence[str], tokenizer: Any, seed: int) -> ModernBertForMaskedLM:
    """A masked LM of the setting's size from scratch."""
    size = SETTING["model"]
    torch.manual_seed(seed)
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=size["width"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        intermediate_size=2 * size["width"],
        max_position_embeddings=256,
        local_attention=32,
        **{f"{name}_token_id": i for name, i in (("bos", 0), ("cls", 0), ("pad", 1), ("eos", 2), ("sep", 2))},
    )
    model = ModernBertForMaskedLM(config)
    says, goal = model_source(model), hard()
    stream = mlm_batches(texts, tokenizer, SETTING["length"], SETTING["batch"], seed, SETTING["masking"])
    step = lambda batch, clock: goal(says(batch), Signals(), batch, clock)  # noqa: E731
    fit(Stage("mlm", step, {"model": model}, stream, SETTING["steps"], Optim(SETTING["lr"], "linear", 0.05), seed=seed))
    return model.eval()


def hide(texts: Sequence[str], seed: int = 0) -> list[Hidden]:
    """The words of every text and which of them are hidden; the same for every model."""
    draw = np.random.default_rng(seed)
    found = []
    for text in texts:
        words = text.split()[:24]
        chosen = [i for i, word in enumerate(words) if word.isalpha() and draw.random() < SETTING["hidden_words"]]
        if chosen:
            found.append((words, chosen))
    return found


@torch.no_grad()
def restored(model: Any, tokenizer: Any, hidden: Sequence[Hidden], chance: float) -> dict[str, float]:
    """``bits`` per character of hidden words and the share that is ``restored``, all their pieces hidden at once."""
    right, bits, letters, total = 0, 0.0, 0, 0
    for start in range(0, len(hidden), 64):
        ids, mask, spans = laid_out(tokenizer, hidden[start : start + 64])
        blind = ids.clone()
        for row, a, b, _ in spans:
            blind[row, a:b] = tokenizer.mask_token_id
        said = model(blind, attention_mask=mask.long()).logits.log_softmax(-1)
        for row, a, b, length in spans:
            piece = ids[row, a:b]
            known = bool((piece != tokenizer.unk_token_id).all())
            spent = -said[row, a:b].gather(1, piece[:, None]).sum().item() / math.log(2)
            bits += spent if known else length * chance
            right += known and bool((said[row, a:b].argmax(-1) == piece).all())
            letters, total = letters + length, total + 1
    return {"bits": bits / letters, "restored": right / total}


def laid_out(tokenizer: Any, rows: Sequence[Hidden]) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, ...]]]:
    """Padded ids and mask of the texts; and row, first and last place and letters of every hidden word."""
    lists, spans = [], []
    for number, (words, chosen) in enumerate(rows):
        pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        edges = list(pairwise(np.cumsum([1, *map(len, pieces)]).tolist()))
        lists.append([tokenizer.bos_token_id, *(i for piece in pieces for i in piece), tokenizer.eos_token_id])
        spans += [(number, *edges[i], len(words[i])) for i in chosen]
    return pad(lists, tokenizer.pad_token_id), lengths_mask(lists), spans


def variants(tokenizer: Any, texts: dict[str, list[str]], seed: int) -> dict[str, list[int]]:
    """Ids to keep, by name of the variant."""
    counts = count_tokens(tokenizer, texts["ro"])
    mix = count_tokens(tokenizer, [text for corpus in texts.values() for text in corpus])
    used, draw = most_frequent(tokenizer, counts, min_count=1), np.random.default_rng(seed)
    every = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    found = {"all_used": used}
    for share in SHARES:
        size, name = round(share * len(used)), f"{share:.0%}"
        found[name] = most_frequent(tokenizer, counts, size, 1)
        found[f"{name} mix"] = most_frequent(tokenizer, mix, size, 1)
        for kind, pool in (("random", every), ("random of used", used)):
            found[f"{name} {kind}"] = sorted({*tokenizer.all_special_ids, *draw.choice(pool, size, False).tolist()})
    return found


@torch.no_grad()
def exactness(model: Any, tokenizer: Any, small: Any, small_tokenizer: Any, texts: Sequence[str]) -> dict[str, float]:
    """Over all covered texts: how many are cut anew, and the largest difference of logits of a plain forward pass."""
    check_same_logits(model, tokenizer, small, small_tokenizer, texts)
    rows = kept_rows(model, tokenizer, small_tokenizer)
    new, anew, gap, covered = {row: place for place, row in enumerate(rows)}, 0, 0.0, 0
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=SETTING["length"])["input_ids"]
        if all(i in new for i in ids):
            covered += 1
            mine = small_tokenizer(text, truncation=True, max_length=SETTING["length"])["input_ids"]
            anew += mine != [new[i] for i in ids]
            wide = model(torch.tensor([ids])).logits[..., rows]
            gap = max(gap, float((small(torch.tensor([[new[i] for i in ids]])).logits - wide).abs().max()))
    return {"covered_texts": covered, "cut_anew": anew, "largest_logit_difference": gap}


def measured(seed: int, name: str, model: Any, tokenizer: Any, covered: float, test: Test) -> dict[str, Any]:
    tables = sum(t.numel() for t in vocabulary_tensors(model) if t.ndim == 2)
    row = {"tokens": len(tokenizer), "coverage": covered, **restored(model, tokenizer, *test)}
    row = {"seed": seed, "method": name, **row, "parameters": model.num_parameters(), "in_tables": tables}
    print(row, flush=True)
    return row


def one_seed(seed: int, texts: dict[str, list[str]], tokenizer: Any, test: list[str]) -> tuple[list[dict], dict]:
    model = train([text for corpus in texts.values() for text in corpus], tokenizer, seed)
    chance = math.log2(len(set("".join(texts["ro"]))))
    hidden, running = (hide(test), chance), count_tokens(tokenizer, test)
    rows, exact = [measured(seed, "original", model, tokenizer, 1.0, hidden)], {}
    for name, keep in variants(tokenizer, texts, seed).items():
        small, small_tokenizer = trim_vocabulary(model, tokenizer, keep)
        covered = coverage(running, kept_rows(model, tokenizer, small_tokenizer))
        rows.append(measured(seed, name, small, small_tokenizer, covered, hidden))
        if name == "all_used":
            exact = exactness(model, tokenizer, small, small_tokenizer, test)
        if name == f"{SHARES[1]:.0%}":
            rows.append(healed(seed, model, tokenizer, small, small_tokenizer, covered, texts["ro"], hidden))
    own = unigram(texts["ro"], round(SHARES[0] * rows[1]["tokens"]))
    scratch = train(texts["ro"], own, seed)
    rows.append(measured(seed, f"{SHARES[0]:.0%} from scratch", scratch, own, 1.0, hidden))
    return rows, exact


def healed(seed: int, model: Any, tokenizer: Any, small: Any, small_tokenizer: Any, covered: float, texts: list[str],
           hidden: Test) -> dict[str, Any]:  # fmt: skip
    """The trimmed model after distillation from the original on Romanian training text."""
    cfg = Config(heal=SETTING["heal"]["steps"], lr=SETTING["heal"]["lr"], length=SETTING["length"], seed=seed)
    stream = healing(model, tokenizer, small_tokenizer, texts, cfg)
    student, teacher = copy.deepcopy(small), copy.deepcopy(model)
    heal(student, teacher, kept_rows(model, tokenizer, small_tokenizer), stream, cfg)
    return measured(seed, f"{SHARES[1]:.0%} healed", student, small_tokenizer, covered, hidden)


def checks(rows: list[dict[str, Any]], means: dict[str, Any], exact: list[dict[str, float]]) -> list[dict[str, Any]]:
    seeds = len({row["seed"] for row in rows})
    bits, value, cover = ({n: row[key]["mean"] for n, row in means.items()} for key in ("bits", "restored", "coverage"))
    whole, names = "original", ["all_used", *(f"{share:.0%}" for share in SHARES)]
    flat = [name for name in names if cover[name] >= 0.99]
    half, quarter = (f"{share:.0%}" for share in SHARES[:2])
    texts, gap = sum(e["covered_texts"] for e in exact), max(e["largest_logit_difference"] for e in exact)
    return [
        {
            "claim": "no covered text is cut anew, and kept logits agree",
            "holds": texts > 0 and gap < 1e-5 and not any(e["cut_anew"] for e in exact),
            "seen": f"{texts} texts, largest difference {gap:.2g}",
        },
        {
            "claim": "where 99 % of running tokens are kept, at most 5 % of restored words are lost, and 2 % of bits",
            "holds": bool(flat)
            and all(value[n] >= 0.95 * value[whole] and bits[n] <= 1.02 * bits[whole] for n in flat),
            "seen": ", ".join(
                f"{n}: {value[n] / value[whole]:.3f} of words, {bits[n] / bits[whole]:.3f} of bits at {cover[n]:.3f}"
                for n in names
            ),
        },
        {
            "claim": "restored words fall with coverage",
            "holds": all(value[a] >= value[b] - 0.002 for a, b in pairwise([whole, *names])),
            "seen": ", ".join(f"{value[name]:.4f}" for name in [whole, *names]),
        },
        *(
            {
                "claim": f"{kind} tokens restore at most half as many words as frequent ones, at {name}",
                "holds": value[f"{name} {kind}"] <= 0.5 * value[name],
                "seen": f"{value[f'{name} {kind}']:.4f} against {value[name]:.4f}; "
                f"bits {bits[f'{name} {kind}']:.3f} against {bits[name]:.3f}",
            }
            for name in (half, quarter)
            for kind in ("random", "random of used")
        ),
        {
            "claim": f"the language's own counts are better than the mix's, at {half}",
            "holds": wins(rows, "bits", half, f"{half} mix") == seeds,
            "seen": f"{bits[half]:.3f} against {bits[f'{half} mix']:.3f}",
        },
        {
            "claim": f"healing lowers the bits, at {quarter}",
            "holds": wins(rows, "bits", f"{quarter} healed", quarter) == seeds,
            "seen": f"{bits[f'{quarter} healed']:.3f} against {bits[quarter]:.3f}",
        },
    ]


def main() -> None:
    args = arguments(__doc__)
    texts, test = read(args.data)
    tokenizer = unigram([text for corpus in texts.values() for text in corpus], SETTING["vocabulary"])
    rows: list[dict[str, Any]] = []
    exact: list[dict[str, float]] = []
    for seed in range(args.seeds):
        found, facts = one_seed(seed, texts, tokenizer, test)
        rows, exact = rows + found, [*exact, facts]
    means = summary(rows)
    seen = checks(rows, means, exact)
    result = {"claim": "half of a multilingual vocabulary is enough for one language", "setting": SETTING, "rows": rows}
    result |= {"exactness": exact, "summary": means, "checks": seen, "verdict": verdict(seen)}
    write_result(args.out, "vocab_trim", result)


if __name__ == "__main__":
    main()
