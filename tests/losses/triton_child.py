"""Fused losses by Triton's interpreter: prints their distance to float64, and that of the closed forms of PyTorch.

``triton_child.py compile`` compiles the kernels for a GPU instead, which takes none, and prints what came of it.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from limbeck.losses import divergence as plain
from limbeck.losses import triton_rows
from limbeck.losses.fused import fused_parts
from limbeck.losses.heads import Head
from limbeck.losses.sweep import Part

TOKENS, POSITIONS = 100, 3
triton_rows.BLOCK = 64  # a block and a piece
TARGETS = torch.tensor([99, -100, 64])
FAMILY = {
    "forward_kl": plain.forward_kl,
    "reverse_kl": plain.reverse_kl,
    "total_variation": plain.total_variation,
    "soft_cross_entropy": plain.soft_cross_entropy,
    "interpolated": partial(plain.interpolated_cross_entropy, share=0.4),
    **{f"skew_forward_kl {a}": partial(plain.skew_forward_kl, alpha=a) for a in (0, 0.1, 0.7)},
    **{f"skew_reverse_kl {a}": partial(plain.skew_reverse_kl, alpha=a) for a in (0, 0.1, 0.7)},
    **{f"jsd {b}": partial(plain.jsd, beta=b) for b in (0, 0.1, 0.5, 1)},
}
PARTS = {
    **{name: [Part(function, 1.5)] for name, function in FAMILY.items()},
    "cross_entropy": [Part(None, targets=TARGETS)],
    "two": [Part(plain.jsd, weight=0.3), Part(None, targets=TARGETS)],
}
CASES = ("far", "near", "banned", "capped")
RAN: set[str] = set()
CAPPED = ("jsd 0.1", "cross_entropy", "two")


def heads(case: str, dtype: torch.dtype) -> tuple[Head, Head]:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    ours = [draw(POSITIONS, 8), draw(TOKENS, 8), draw(TOKENS)]
    theirs = [x + 1e-2 * draw(x.shape) if case == "near" else draw(x.shape) for x in ours]
    if case == "banned":  # a whole block
        ours[2][:66] = theirs[2][:66] = -torch.inf
    cap = 5.0 if case == "capped" else None
    student, teacher = (Head(*(x.to(dtype) for x in side), softcap=cap) for side in (ours, theirs))
    for leaf in student[:3]:
        leaf.requires_grad_()
    return student, teacher


def found(case: str, name: str, dtype: torch.dtype, triton: bool) -> list[torch.Tensor]:
    """Values and gradients."""
    os.environ["LIMBECK_TRITON"] = str(int(triton))
    student, teacher = heads(case, dtype)
    values = torch.stack(fused_parts(student, teacher, PARTS[name], chunk=2))
    return [x.detach().double() for x in (values, *torch.autograd.grad(values.sum(), student[:3]))]


def errors(case: str, name: str) -> list[float]:
    """Of the kernel and of the closed form: the largest distance as a share of the norm, infinite if not a number."""
    exact = found(case, name, torch.float64, False)
    ways = [zip(found(case, name, torch.float32, triton), exact, strict=True) for triton in (True, False)]
    return [max(float(((a - b).norm() / b.norm()).nan_to_num(torch.inf)) for a, b in way) for way in ways]


def counted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel``, noting that it ran."""

    def run(*args: Any, **settings: Any) -> Any:
        RAN.add(name)
        return kernel(*args, **settings)

    return run


def interpreted() -> dict[str, Any]:
    triton_rows.KNOWN = {form: counted(form.__name__, kernel) for form, kernel in triton_rows.KNOWN.items()}
    triton_rows.cross_entropy = counted("cross_entropy", triton_rows.cross_entropy)
    wanted = [(case, name) for case in CASES for name in PARTS if case != "capped" or name in CAPPED]
    return {"errors": {f"{case} {name}": errors(case, name) for case, name in wanted}, "ran": sorted(RAN)}


def compiled() -> list[int]:
    """Bytes of machine code of every kernel for compute capability 9.0."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    floats, sizes = ("student", "teacher", "out", "values"), ("by_s", "by_t", "by_o", "size")
    kinds = dict.fromkeys(floats, "*fp32") | dict.fromkeys(sizes, "i32") | {"share": "fp32", "targets": "*i64"}
    soft = [(triton_rows._soft_rows, {"kind": kind, "block": triton_rows.BLOCK}) for kind in range(7)]
    found = []
    for kernel, constants in [*soft, (triton_rows._hard_rows, {"ignore": -100, "block": triton_rows.BLOCK})]:
        signature = {name: kinds.get(name, "constexpr") for name in kernel.arg_names}
        source = ASTSource(kernel, signature=signature, constexprs=constants)
        built = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": triton_rows.WARPS})
        found.append(len(built.asm["cubin"]))
    return found


if __name__ == "__main__":
    print(json.dumps(compiled() if "compile" in sys.argv else interpreted()))
