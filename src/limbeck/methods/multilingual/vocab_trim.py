"""Vocabulary trimming: a multilingual model without the tokens that one's languages do not use.

Paper:      Ushio et al., Findings of EMNLP 2023, arXiv 2305.15020; released code asahi417/lm-vocab-trimmer at a4f173b.
Says:       the tokens of a language are a small part of a multilingual vocabulary, and the tables a large part of a
            model. Count tokens on text, keep the frequent ones, delete all other rows; nothing is trained.
Parts:      students.vocabulary (frequent_tokens, trim_vocabulary) | students.unchanged (check_same_logits) | for
            --heal: sources.vocabulary (kept, elsewhere), objectives (soft)
Needs:      a model that reads tokens through a table, with a fast tokenizer: Unigram, WordPiece, BPE or WordLevel.
Departures: BPE keeps the pieces that lead to kept pieces, and the letters of byte-level and byte-fallback tokenizers;
            WordPiece is renumbered; output biases keep their rows; ids in the configuration follow their tokens. The
            released code fails at, misplaces or loses these. Several corpora may count alike (--equal). Healing is
            ours: texts that are cut anew are distilled from the original where both cuts agree.
Checked:    released code and its repairs, 9 cases: counts, kept ids, vocabularies, encodings, tables, biases, sizes.
Claim:      claims/vocab_trim.py: accuracy over size, against random tokens and the original.
"""

from __future__ import annotations

import copy
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.analyses.doctor import doctor
from limbeck.atlas import corpora
from limbeck.core.batch import to_device
from limbeck.core.check import require
from limbeck.core.fit import fit
from limbeck.core.signals import Source
from limbeck.core.stage import Optim, Stage, distill_step, freeze
from limbeck.data.read import read_text
from limbeck.data.recut import recut_batches
from limbeck.data.stream import Batches
from limbeck.models.load import load_model
from limbeck.objectives.tokens import soft
from limbeck.record import find_record
from limbeck.report.sections import Curve, Section, Table
from limbeck.run import Run, begin, seed_all
from limbeck.sources.model import model_source
from limbeck.sources.vocabulary import elsewhere, kept
from limbeck.students.unchanged import check_same_logits
from limbeck.students.vocabulary import (
    count_tokens,
    coverage,
    coverage_curve,
    kept_rows,
    mean_share,
    most_frequent,
    table_sizes,
    trim_vocabulary,
)

SAMPLE = 1000  # texts of each corpus that are looked through for covered ones
QUIET_SECONDS = 10.0


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck vocab_trim``."""

    out: Path = Path("runs/vocab_trim")
    """Folder that the run writes."""
    model: str = "limbeck:atlas/weights/lm"
    """Folder or Hub id of the model to trim, of any kind; by default the LM that ships with limbeck."""
    data: tuple[str, ...] = ()
    """Text of the languages to keep: jsonl, txt, parquet, folders or Hub ids; by default the atlas in Romanian."""
    size: int | None = None
    """How many of the most frequent tokens stay; paper: 60000 of XLM-R's 250000. By default all that are counted."""
    min_count: int = 2
    """Tokens that occur less often go; released code."""
    equal: bool = False
    """Count shares of each --data instead of tokens, so that a small language counts as much as a large one."""
    always: tuple[str, ...] = ()
    """Tokens to keep in any case, written as the tokenizer writes them."""
    heal: int = 0
    """Steps of distillation from the original on texts that are cut anew; the paper trains nothing."""
    batch: int = 16
    """Rows per batch of healing."""
    length: int = 64
    """Tokens per row of healing."""
    lr: float = 5e-5
    """Peak learning rate of healing, linear decay."""


class Trimmed(NamedTuple):
    """The small model and tokenizer, what was measured, and the share of running tokens covered by each size."""

    model: Any
    tokenizer: Any
    metrics: dict[str, Any]
    curve: tuple[list[int], list[float]]


def vocab_trim(model: Any, tokenizer: Any, texts: Mapping[str, Iterable[str]], cfg: Config) -> Trimmed:
    """Trim ``model`` and ``tokenizer`` to the frequent tokens of ``texts`` (corpora by name, each readable twice).

    The result is verified: ids and logits of covered texts are those of ``model``, which is not changed (see
    ``trim_vocabulary``). Raises ``LimbeckError`` where they would not be, or where ``cfg`` asks for what is not there.
    """
    counts = {name: count_tokens(tokenizer, corpus, tell=_teller(name)) for name, corpus in texts.items()}
    total: Counter[int] = sum(counts.values(), Counter())
    weigh = mean_share(counts.values()) if cfg.equal else total.__getitem__
    always = _ids(tokenizer, cfg.always)
    keep = most_frequent(tokenizer, total, cfg.size, cfg.min_count, always, weigh)
    small, small_tokenizer = trim_vocabulary(model, tokenizer, keep)
    sample = chain.from_iterable(islice(corpus, SAMPLE) for corpus in texts.values())
    checked = check_same_logits(model, tokenizer, small, small_tokenizer, sample)
    rows = kept_rows(model, tokenizer, small_tokenizer)
    metrics = {
        "tokens": {"before": len(tokenizer), "after": len(small_tokenizer), "seen": len(total)},
        "before": table_sizes(model),
        "after": table_sizes(small),
        "coverage": {name: coverage(count, rows) for name, count in counts.items()},
        "texts_checked": checked,
    }
    return Trimmed(small, small_tokenizer, metrics, coverage_curve(total, weigh))


def healing(model: Any, tokenizer: Any, small_tokenizer: Any, texts: Iterable[str], cfg: Config) -> Batches:
    """Texts that the trimmed tokenizer cuts anew, beside the original's cut, as many as ``cfg.heal`` steps read."""
    return recut_batches(
        texts,
        small_tokenizer,
        tokenizer,
        cfg.length,
        cfg.batch,
        cfg.seed,
        masked=_reads_masked(model),
        most=cfg.heal * cfg.batch * cfg.accumulate,
    )


def heal(
    small: Any,
    model: Any,
    keep: Sequence[int],
    stream: Batches,
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
) -> dict[str, float]:
    """Train ``small`` in place towards ``model`` on the tokens ``keep`` (its old ids), where both cuts agree.

    The two may not share parameters: ``copy.deepcopy`` the result of ``trim_vocabulary`` first.
    """
    stage = Stage(
        "heal",
        distill_step(*both_sides(small, model, keep), soft(on="aligned")),
        train={"student": small},
        stream=stream,
        steps=cfg.heal,
        optim=Optim(cfg.lr, "linear"),
        accumulate=cfg.accumulate,
        frozen={"teacher": model},
        seed=cfg.seed,
        save_every=cfg.save_every,
    )
    return fit(stage, out, engine)


def both_sides(small: Any, model: Any, keep: Sequence[int]) -> tuple[Source, Source]:
    """The small model, and the original on its own cut of the text and the tokens ``keep``."""
    return model_source(small), elsewhere(kept(model_source(model), keep))


def main(cfg: Config) -> Path:
    """Trim ``cfg.model`` to the text in ``cfg.data``; writes the small model, its tokenizer and a report."""
    require(cfg.heal >= 0, f"--heal {cfg.heal}: expected a number of steps, 0 or more")
    require(cfg.min_count >= 1, f"--min-count {cfg.min_count}: expected a whole number of at least 1")
    find_record(Path(cfg.out), "vocab_trim", cfg)  # refuses another run's folder before anything is counted
    seed_all(cfg.seed)
    model, tokenizer = load_model(cfg.model, "saved", "auto")
    texts: dict[str, Iterable[str]] = {name: Corpus(name) for name in cfg.data}
    texts = texts or {"atlas (ro)": corpora.sentences("ro", 4000, cfg.seed)}
    small, small_tokenizer, metrics, curve = vocab_trim(model, tokenizer, texts, cfg)
    sections = _sections(metrics, curve, [_cuts(tokenizer, small_tokenizer, texts)])
    if not cfg.heal:
        del model  # its table goes before the small model is written
        run = begin(cfg, "vocab_trim")
        return run.finish(small, small_tokenizer, metrics, sections)
    stream = healing(model, tokenizer, small_tokenizer, chain.from_iterable(texts.values()), cfg)
    run, keep = begin(cfg, "vocab_trim"), kept_rows(model, tokenizer, small_tokenizer)
    dtype, device = small.dtype, run.accelerator.device
    small = copy.deepcopy(small).float().to(device)  # small steps are lost in half precision
    both = both_sides(small, freeze(model).to(device), keep)
    batch = to_device(stream.at(0), device)
    run.heed(doctor(*both, small_tokenizer, tokenizer, [batch], on="aligned"))
    metrics["heal"] = heal(small, model, keep, stream, cfg, run.stage_dir, run.accelerator)
    return run.finish(small.to(dtype), small_tokenizer, metrics, sections)


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk or on the Hub that can be read more than once."""

    name: str

    def __iter__(self) -> Iterator[str]:
        return read_text(self.name)


def _ids(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    known = tokenizer.get_vocab() if tokens else {}
    strange = next((token for token in tokens if token not in known), None)
    require(strange is None, f"--always {strange!r}: the tokenizer has no such token; write it as the tokenizer does")
    return [known[token] for token in tokens]


def _reads_masked(model: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind = type(model).__name__
    if kind.endswith("MaskedLM"):
        return True
    require(
        kind in CAUSAL.values(), f"--heal needs a masked or causal language model, but got {kind}; leave --heal out"
    )
    return False


def _teller(name: str) -> Callable[[int], None]:
    """Says on stderr now and then how many texts were counted."""
    began = spoke = time.monotonic()

    def tell(read: int) -> None:
        nonlocal spoke
        now = time.monotonic()
        if now - spoke > QUIET_SECONDS:
            spoke = now
            print(f"counting {name}: {read:,} texts, {read / (now - began):,.0f} a second", file=sys.stderr, flush=True)

    return tell


def _cuts(tokenizer: Any, small_tokenizer: Any, texts: Mapping[str, Iterable[str]]) -> Section:
    """How the first texts of each corpus are cut, before and after."""
    rows = []
    for name, corpus in texts.items():
        for text in islice(corpus, 3):
            before, after = (" ".join(each.tokenize(text[:120])) for each in (tokenizer, small_tokenizer))
            rows.append((name, before, "the same" if after == before else after))
    return Table("How texts are cut", ("corpus", "before", "after"), rows)


def _sections(metrics: Mapping[str, Any], curve: tuple[list[int], list[float]], more: list[Section]) -> list[Section]:
    before, after, tokens = metrics["before"], metrics["after"], metrics["tokens"]
    names = {"parameters": "parameters", "embedding": "of these in tables", "rows": "rows", "bytes": "bytes"}
    rows = [(label, before[key], after[key], after[key] / before[key]) for key, label in names.items()]
    rows.insert(2, ("tokens", tokens["before"], tokens["after"], tokens["after"] / tokens["before"]))
    texts = (
        f"ids and logits of {metrics['texts_checked']} covered texts" if metrics["texts_checked"] else "no whole text"
    )
    checked = f"Compared with the original, and the same bit for bit: all rows, {texts}."
    sizes = Table("Before and after", ("", "before", "after", "share"), rows, checked)
    covered = Table("Running tokens that are kept", ("corpus", "share"), list(metrics["coverage"].items()), digits=5)
    line = Curve("Running tokens covered by the most frequent tokens", {"covered": curve}, "tokens kept", "share")
    return [sizes, covered, line, *more]
