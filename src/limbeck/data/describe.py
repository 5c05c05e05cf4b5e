"""What a set of rows is like, in a few numbers: so that pipelines that suited one set can be proposed for another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from zlib import crc32

from limbeck.core.check import require
from limbeck.data.labelled import Row, classes_in

BUCKETS = 16


def describe(rows: Sequence[Row]) -> dict[str, float]:
    """Numbers by name: size, classes and how even they are, lengths, riches of words, and a hashed sketch of words."""
    require(rows, "there are no rows to describe; check the data")
    words = [word.lower() for row in rows for text in row[:2] if text for word in text.split()]
    lengths = [len(row.text.split()) for row in rows]
    mean = sum(lengths) / len(rows)
    labels = Counter(row.label for row in rows if row.label is not None)
    shares = [count / sum(labels.values()) for count in labels.values()]
    told = {
        "log_rows": math.log(len(rows)),
        "classes": float(len(classes_in(rows))),
        "evenness": -sum(share * math.log(share) for share in shares) / math.log(len(shares)),
        "labelled": sum(labels.values()) / len(rows),
        "pairs": sum(row.pair is not None for row in rows) / len(rows),
        "words": mean,
        "spread": math.sqrt(sum((length - mean) ** 2 for length in lengths) / len(rows)),
        "riches": len(set(words)) / max(1, len(words)),
    }
    sketch = Counter(crc32(word.encode()) % BUCKETS for word in words)
    return told | {f"sketch_{i}": sketch[i] / max(1, len(words)) for i in range(BUCKETS)}
