"""DistillKit's compression of log-probabilities, read only; tried against its own code (a snapshot of 2026).

A position's log-probabilities fall with rank. The first ``exact_k`` are kept as they are, the others as a curve over
their rank (a sum of ``polynomial_terms``), to which the quantised residuals of some groups (``residual_bins``) are
added. Ids are packed with ceil(log2(d)) bits, in the order of rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.core.check import LimbeckError, require

CONFIG = "compression_config.yaml"
WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Scheme:
    """The fields of ``compression_config.yaml``."""

    d: int
    k: int
    exact_k: int
    exact_dtype: str = "float32"
    polynomial_terms: Sequence[int | str] = ()
    term_dtype: str = "float32"
    residual_bins: Sequence[Mapping[str, Any]] = ()
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @property
    def id_bits(self) -> int:
        """Bits of an id."""
        return math.ceil(math.log2(self.d))

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a position takes."""
        known = self.exact_k * WIDTHS[self.exact_dtype] + len(self.polynomial_terms) * WIDTHS[self.term_dtype]
        bins = (WIDTHS[b["scale_dtype"]] + -(-b["element_bits"] * b["num_elements"] // 8) for b in self.residual_bins)
        return known + sum(bins) + -(-self.k * self.id_bits // 8)

    def unpack(self, log_probs: Any, ids: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids n k and log-probabilities n k of n positions, from their bytes."""
        values, names = (np.asarray(part, np.uint8) for part in (log_probs, ids))
        bits, least = self.k * self.id_bits, self.bytes_per_token - -(-self.k * self.id_bits // 8)
        require(
            values.ndim == names.ndim == 2 and values.shape[1] == least and names.shape[1] * 8 >= bits,
            f"{where}: the bytes do not fit {CONFIG}, which asks for {least} and {-(-bits // 8)} per token, but there "
            f"are {values.shape[1:]} and {names.shape[1:]}",
        )
        unpacked = np.unpackbits(names, axis=1)[:, :bits].reshape(len(names), self.k, self.id_bits)
        return unpacked.astype(np.int64) @ (1 << np.arange(self.id_bits)[::-1]), self._log_probs(values)

    def _log_probs(self, data: np.ndarray) -> np.ndarray:
        data = np.ascontiguousarray(data)
        exact, data = _take(data, self.exact_dtype, self.exact_k)
        rest = self.k - self.exact_k
        weights, data = _take(data, self.term_dtype, len(self.polynomial_terms))
        curve = weights @ self._terms(rest).T if len(self.polynomial_terms) else np.zeros((len(data), rest))
        at = 0
        for group in self.residual_bins:
            width, count = group["element_bits"], group["num_elements"]
            scale, data = _take(data, group["scale_dtype"], 1)
            size = -(-width * count // 8)
            steps = np.unpackbits(data[:, :size], axis=1)[:, : width * count].reshape(len(data), count, width)
            steps = steps.astype(np.int64) @ (1 << np.arange(width)[::-1])
            steps = 2 * steps - 1 if width == 1 else steps - (1 << width - 1)
            curve[:, at : at + count] += steps * scale
            at, data = at + count, data[:, size:]
        found = np.concatenate([exact, curve], 1)
        return np.cumsum(found, 1) if self.delta_encoding else found

    def _terms(self, count: int) -> np.ndarray:
        """The curve's terms at each rank, count x terms."""
        at = np.linspace(0, 1, count) if self.normalize_t else np.arange(count, dtype=float)
        special = {"sqrt": np.sqrt, "exp": np.exp}
        return np.stack([special[t](at) if isinstance(t, str) else at**t for t in self.polynomial_terms], 1)


def _take(data: np.ndarray, kind: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``count`` numbers of ``kind`` in each row of bytes, as float64, and the bytes after them."""
    size = count * WIDTHS[kind]
    part = np.ascontiguousarray(data[:, :size])
    if kind == "bfloat16":
        values = (part.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = part.view(f"<f{WIDTHS[kind]}")
    return values.astype(np.float64).reshape(len(data), count), data[:, size:]


def read_scheme(folder: Path) -> Scheme:
    """The compression that the files in ``folder`` were written with."""
    import yaml

    path = folder / CONFIG
    require(path.is_file(), f"{path}: no such file; DistillKit's sampler writes it beside its parquet files")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        scheme = Scheme(**{**values, "polynomial_terms": values.get("polynomial_terms") or ()})
        require(scheme.bytes_per_token > 0, "")
    except (yaml.YAMLError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise LimbeckError(f"{path}: expected DistillKit's compression settings, but {error}") from None
    return scheme
