"""The shared contract, for MEND's two stages, its variant without a teacher, and prompt tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_llms
from contract import CHECKS, Case, stages_of

from limbeck.context.backbone import as_backbone
from limbeck.context.collate import Collate
from limbeck.context.distiller import Distiller
from limbeck.context.host import Host
from limbeck.context.reading import Reading
from limbeck.context.streams import document_stream, episode_stream
from limbeck.core.stage import Stage
from limbeck.methods.context import mend, prompt_tuning

TEXT = [" ".join(tiny_llms.WORDS[i:] + tiny_llms.WORDS[: i + i % 3]) for i in range(20)]


def stage_of_mend(number: int, seed: int, kind: str = "llama", **settings: Any) -> Stage:
    """Stage ``number`` of the recipe on tiny models."""
    lm, small = tiny_llms.build(kind, seed=seed), tiny_llms.build(kind, width=8, layers=1, seed=seed + 50)
    plan = {"length": 3, "limit": 20, "budget": 40, "context": 60}
    distiller = Distiller.build(lm, "nowhere", tiny_llms.tokenizer(), as_backbone(small, kind == "t5"), **plan)
    streams = document_stream(distiller, TEXT, 8, seed)[0], episode_stream(distiller, [tiny_llms.task()], 8, 4, seed)
    cfg = mend.Config(seed=seed, steps=8, pretrain_steps=8, **settings)
    return stages_of(mend, lambda: mend.mend(lm, distiller, *streams, cfg))[number]


def stage_of_prompt_tuning(seed: int) -> Stage:
    lm = tiny_llms.build("gpt2", seed=seed)
    collate = Collate(tiny_llms.tokenizer(), Host.of(lm, "nowhere"), Reading(length=4, limit=20))
    cfg = prompt_tuning.Config(length=4, steps=8, batch=8, seed=seed)
    recipe = prompt_tuning.prompt_tuning
    return stages_of(prompt_tuning, lambda: recipe(lm, collate, tiny_llms.task().train, cfg))[0]


CASES = [
    Case("mend, stage 1", lambda seed: stage_of_mend(0, seed)),
    Case("mend, stage 2", lambda seed: stage_of_mend(1, seed)),
    Case("mend, stage 2 on an encoder-decoder", lambda seed: stage_of_mend(1, seed, "t5")),
    Case("hypertuning, stage 1", lambda seed: stage_of_mend(0, seed, "gpt2", kd=0.0)),
    Case("hypertuning, stage 2", lambda seed: stage_of_mend(1, seed, "gpt2", kd=0.0)),
    Case("prompt_tuning", stage_of_prompt_tuning, lr=0.1),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_contract(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path)
