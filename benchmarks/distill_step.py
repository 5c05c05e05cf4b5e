"""A whole step of distillation on fixed data: limbeck beside TRL's GKDTrainer and a bare loop, packed beside padded.

Student (4 layers of 256) and teacher (8 of 384) are random Qwen2 models with 65,536 tokens and tied heads; rows are a
prompt and an answer, the divergence is JSD(0.5), AdamW, a linear schedule, clipping at 1, float32. All start from the
same weights and see the same batches in the same order.

- ``trl``: ``GKDTrainer`` with ``lmbda=0``, if TRL is installed. Its losses are to be limbeck's to 1e-4 over 20 steps.
- ``floor``: what cannot be left out: the teacher's forward pass, the student's forward and backward pass, the same
  fused loss, clipping and the optimizer, in a bare loop. It takes turns with ``fit``, step by step in one process.
- ``packed``: rows of very unequal length (log-normal), several to a row, beside the same rows padded.

Every side is a process of its own. ``seconds`` is processor time of a step, the median without the first two;
``megabytes`` is what the process grew to over the moment before training, when models and data were there. Writes
``benchmarks/results/distill_step.json``.

    python benchmarks/distill_step.py [--steps 20]

Targets: 3 times as fast as TRL in a quarter of its memory, and at most 1.10 times the floor.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

VOCABULARY, LENGTH, ROWS, PROMPT = 65_536, 256, 4, 128
BETA, RATE, WARM = 0.5, 1e-4, 2
TIMES_FASTER, SHARE_OF_PEAK, OVER_FLOOR = 3.0, 0.25, 1.10
RESULT = Path(__file__).parent / "results" / "distill_step.json"


def model(width: int, layers: int) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(layers)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
    )
    return Qwen2ForCausalLM(config)


def pair() -> tuple[Any, Any]:
    """Student and teacher."""
    return model(256, 4), model(384, 8).eval().requires_grad_(False)


def rows(number: int, skewed: bool = False) -> list[tuple[list[int], list[bool]]]:
    """Token ids, and which of them belong to the answer: half of each row; ``skewed`` rows are mostly short."""
    import numpy as np

    draw = np.random.default_rng(0)
    sizes = np.clip(draw.lognormal(3.8, 0.8, number), 8, LENGTH).astype(int) if skewed else [LENGTH] * number
    return [(draw.integers(2, VOCABULARY, n).tolist(), [i >= n // 2 for i in range(n)]) for n in sizes]


def batches(number: int) -> list[Any]:
    import torch

    from limbeck.core.batch import next_token_batch

    given = rows(number * ROWS)
    chunks = [given[i : i + ROWS] for i in range(0, len(given), ROWS)]
    tensors = [(torch.tensor([ids for ids, _ in c]), torch.tensor([keep for _, keep in c])) for c in chunks]
    return [next_token_batch(ids, torch.ones_like(keep), keep) for ids, keep in tensors]


def memory(field: str) -> float:
    """Megabytes of this process now (``VmRSS``) or at most since the mark was set back (``VmHWM``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise SystemExit("this benchmark reads /proc/self/status, which is there on Linux only")


class Watch:
    """Processor seconds between marks, and the memory that was needed since it was made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self.before, self.marks = memory("VmRSS"), [time.process_time()]

    def mark(self) -> None:
        """A step is over."""
        self.marks.append(time.process_time())

    def read(self, losses: list[float]) -> dict[str, Any]:
        """What there is to say at the end."""
        steps = [b - a for a, b in zip(self.marks[:-1], self.marks[1:], strict=True)]
        return {
            "seconds": round(median(steps[WARM:] or steps), 3),
            "megabytes": round(memory("VmHWM") - self.before),
            "models_megabytes": round(self.before),
            "losses": losses,
        }


def trl(steps: int) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    losses: list[float] = []

    class Trainer(GKDTrainer):
        """GKD on rows in their order, remembering its losses."""

        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *args: Any, **more: Any) -> Any:
            """The trainer's own."""
            loss = super().compute_loss(*args, **more)
            losses.append(float(loss))
            return loss

    class Marks(TrainerCallback):
        """Time of every step."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            """Begin."""
            self.watch = Watch()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """One more."""
            self.watch.mark()

    def collate(given: list[dict[str, Any]]) -> dict[str, Any]:
        ids, keep = (torch.tensor([one[name] for one in given]) for name in ("ids", "keep"))
        labels = ids.masked_fill(~keep.bool(), -100)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    student, teacher = pair()
    marks = Marks()
    with TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "per_device_train_batch_size": ROWS,
            "max_steps": steps,
            "lmbda": 0.0,
            "beta": BETA,
            "max_length": LENGTH,
            "learning_rate": RATE,
            "lr_scheduler_type": "linear",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
        }
        data = Dataset.from_list([{"ids": ids, "keep": keep} for ids, keep in rows(steps * ROWS)])
        Trainer(
            model=student,
            teacher_model=teacher,
            args=GKDConfig(**settings),
            train_dataset=data,
            data_collator=collate,
            processing_class=some_tokenizer(PreTrainedTokenizerFast),
            callbacks=[marks],
        ).train()
    return marks.watch.read(losses)


def some_tokenizer(kind: Any) -> Any:
    """A trainer insists on one; it is never asked."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = kind(tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, "<pad>")))
    tokenizer.add_special_tokens({"pad_token": "<pad>", "eos_token": "<eos>"})
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


def limbeck(steps: int) -> dict[str, Any]:
    return distilled(batches(steps))


def distilled(stream: Any, steps: int = 0, student: Any = None) -> dict[str, Any]:
    """Train on ``stream`` by ``fit``."""
    from functools import partial

    from limbeck.core.fit import fit
    from limbeck.core.stage import Optim, Stage, distill_step
    from limbeck.losses.divergence import jsd
    from limbeck.objectives.tokens import soft
    from limbeck.sources.model import model_source

    begun, teacher = pair()
    student = student or begun
    step = distill_step(model_source(student), model_source(teacher), soft(partial(jsd, beta=BETA)))
    losses: list[float] = []

    def after(logs: Any, clock: Any) -> None:
        losses.append(logs["loss"])
        watch.mark()

    stage = Stage("step", step, {"student": student}, stream, steps or len(stream), Optim(RATE), after=[after])
    watch = Watch()
    fit(stage)
    return watch.read(losses)


class Turns:
    """The stream of a fitted student: between two of its steps a bare loop takes one with the same batch."""

    def __init__(self, given: list[Any]) -> None:
        self.given, self.student, self.teacher = given, *pair()
        self.fitted: list[float] = []
        self.bare: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        import torch

        parameters = list(self.student.train().parameters())
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(self.given))
        for batch in self.given:
            start = time.process_time()
            self.loss(batch).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            between = time.process_time()
            yield batch
            self.bare.append(between - start)
            self.fitted.append(time.process_time() - between)

    def loss(self, batch: Any) -> Any:
        """Teacher and student read the batch, and the fused loss reads both."""
        import torch

        from limbeck.losses.divergence import jsd
        from limbeck.losses.fused import fused
        from limbeck.losses.heads import Head

        inputs, where = {"input_ids": batch["ids"], "use_cache": False}, batch["answer"]
        with torch.no_grad():
            taught = self.teacher.model(**inputs).last_hidden_state[where]
        said = self.student.model(**inputs).last_hidden_state[where]
        student, teacher = (
            Head(states, lm.lm_head.weight) for states, lm in ((said, self.student), (taught, self.teacher))
        )
        return fused(jsd, student, teacher).mean()


def floor(steps: int) -> dict[str, Any]:
    turns = Turns(batches(steps))
    distilled(turns, steps)
    fitted, bare = (median(times[WARM:] or times) for times in (turns.fitted, turns.bare))
    return {"seconds": round(bare, 3), "fit_seconds": round(fitted, 3), "fit_over_floor": round(fitted / bare, 3)}


def lengths(packed: bool) -> dict[str, Any]:
    """Seconds per thousand real tokens of one epoch over rows of very unequal length."""
    from limbeck.data.packing import packed_batches, padding, row, row_batches

    given = [row(*one) for one in rows(160, skewed=True)]
    # about as many positions in a batch of either kind
    stream = packed_batches(given, LENGTH, ROWS) if packed else row_batches(given, 2 * ROWS)
    epoch = [batch for batch, _ in zip(stream, range(-(-stream.size // stream.batch)), strict=False)]
    tokens = sum(int(batch["mask"].sum()) for batch in epoch)
    said = distilled(epoch)
    return {
        "seconds_per_1000_tokens": round(1000 * said["seconds"] * len(epoch) / tokens, 3),
        "steps": len(epoch),
        "tokens": tokens,
        "padding": round(padding(stream), 3),
        "megabytes": said["megabytes"],
    }


def measure(side: str, steps: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    if side in ("packed", "padded"):
        return lengths(side == "packed")
    return {"trl": trl, "limbeck": limbeck, "floor": floor}[side](steps)


def apart(side: str, steps: int) -> dict[str, Any]:
    """One side in a process of its own."""
    settings = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-W", "ignore", __file__, "--side", side, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | settings)
    if done.returncode:
        raise SystemExit(done.stderr)
    said = json.loads(done.stdout.strip().splitlines()[-1])
    print(side, {name: value for name, value in said.items() if name != "losses"}, flush=True)
    return said


def compare(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ratios, and whether the targets are met."""
    ours, ratio = found["limbeck"], found["floor"]["fit_over_floor"]
    result: dict[str, Any] = {"sides": found, "over_floor": ratio, "targets": {"1.10x the floor": ratio <= OVER_FLOOR}}
    if "trl" in found:
        theirs = found["trl"]
        apart_by = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
        faster, peak = theirs["seconds"] / ours["seconds"], ours["megabytes"] / theirs["megabytes"]
        result |= {"losses_apart": apart_by, "times_faster": round(faster, 2), "share_of_peak": round(peak, 3)}
        result["targets"] |= {
            "the same losses to 1e-4": apart_by <= 1e-4,
            "3 times as fast as TRL": faster >= TIMES_FASTER,
            "a quarter of TRL's peak": peak <= SHARE_OF_PEAK,
        }
    packed, padded = (found[name]["seconds_per_1000_tokens"] for name in ("packed", "padded"))
    return result | {"packed_beside_padded": round(packed / padded, 3)}


def main() -> None:
    """Measure all sides, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", choices=("trl", "limbeck", "floor", "packed", "padded"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.steps)))
        return
    sides = ["limbeck", "floor", "packed", "padded"]
    if importlib.util.find_spec("trl"):
        sides.insert(0, "trl")
    else:
        print("trl: left out, because it is not installed")
    import torch

    result = compare({side: apart(side, args.steps) for side in sides})
    setting = {"vocabulary": VOCABULARY, "length": LENGTH, "rows": ROWS, "prompt": PROMPT, "steps": args.steps}
    on = {"torch": torch.__version__, "threads": 1, "machine": platform.machine()}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({**setting, **result, "on": on}, indent=1) + "\n")
    print({name: value for name, value in result.items() if name != "sides"})


if __name__ == "__main__":
    main()
