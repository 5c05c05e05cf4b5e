"""What the claim scripts share: where the data is, small tokenizers, means and spreads, the result file."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.core.check import require
from limbeck.core.save import write_json

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared" / "data"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def arguments(description: str | None) -> argparse.Namespace:
    """``--data`` the folder of public data sets, ``--seeds`` how many repetitions, ``--out`` where the result goes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LIMBECK_DATA", SHARED)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def needed(folder: Path, *names: str) -> list[Path]:
    """The files ``names`` below the data ``folder``, all of them there."""
    paths = [folder / name for name in names]
    missing = [str(path) for path in paths if not path.exists()]
    require(not missing, f"the claim needs {', '.join(missing)}; pass --data or set LIMBECK_DATA to the data folder")
    return paths


def summary(rows: Sequence[Mapping[str, Any]], by: str = "method") -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard deviation over the rows of each ``by``, for every number but the seed."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in dict.fromkeys(row[by] for row in rows):
        mine = [row for row in rows if row[by] == name]
        keys = [key for key, value in mine[0].items() if isinstance(value, int | float) and key != "seed"]
        found[name] = {key: spread([row[key] for row in mine]) for key in keys}
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation, six digits."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": digits(statistics.fmean(values)), "sd": digits(deviation)}


def digits(value: float) -> float:
    """``value`` with six significant digits."""
    return float(f"{value:.6g}")


def wins(rows: Sequence[Mapping[str, Any]], metric: str, lower: str, higher: str, by: str = "method") -> int:
    """In how many seeds ``lower`` has a smaller ``metric`` than ``higher``."""
    table = {(row["seed"], row[by]): row[metric] for row in rows}
    seeds = dict.fromkeys(row["seed"] for row in rows)
    return sum(table[seed, lower] < table[seed, higher] for seed in seeds)


def write_result(out: Path, name: str, result: Mapping[str, Any]) -> None:
    """Write ``name``.json and print its summary and verdicts."""
    rows = [{k: digits(v) if isinstance(v, float) else v for k, v in row.items()} for row in result["rows"]]
    write_json(out / f"{name}.json", {**result, "rows": rows})
    for method, measured in result["summary"].items():
        values = "  ".join(f"{key} {v['mean']:.4g} ± {v['sd']:.2g}" for key, v in measured.items())
        print(f"{method:<16} {values}")
    for check in result["checks"]:
        print(f"{'holds' if check['holds'] else 'FAILS'}: {check['claim']} ({check['seen']})")
    print(result["verdict"])


def verdict(checks: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: how many of the checks hold."""
    held = sum(bool(check["holds"]) for check in checks)
    return "confirmed" if held == len(checks) else f"{held} of {len(checks)} checks hold"


def wordpiece(texts: Iterable[str], size: int) -> Any:
    """A lower-casing WordPiece tokenizer of ``size`` tokens, trained on ``texts``, with BERT's special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    )
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", SPECIAL.index("[CLS]")), ("[SEP]", SPECIAL.index("[SEP]"))]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def small_bert(tokenizer: Any, size: Mapping[str, int]) -> Any:
    """The configuration of a BERT of ``size`` (width, layers, heads) for ``tokenizer``, without dropout."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=size["width"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        intermediate_size=4 * size["width"],
        max_position_embeddings=64,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )


def characters(text: str) -> Any:
    """A tokenizer of single characters, those that occur in ``text``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["[UNK]", *sorted(set(text))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
