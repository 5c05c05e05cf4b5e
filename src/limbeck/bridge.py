"""limbeck's objectives and teachers inside somebody else's trainer: transformers' ``Trainer``, TRL's ``SFTTrainer``.

    from limbeck.bridge import distilling

    trainer = distilling(SFTTrainer)(
        model=student, args=args, train_dataset=data, objective=soft(), teacher=teacher
    )
    trainer.train()

The trainer keeps its loop, data, optimizer, logging and checkpoints; only what a batch says is limbeck's. Means are
over the whole optimizer step, so gradient accumulation and several processes (DDP) change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from limbeck.core.batch import IGNORE, Batch, shift
from limbeck.core.check import require
from limbeck.core.learn import Counts, Record, add_up, count_units, read
from limbeck.core.signals import Source
from limbeck.core.stage import After, Objective
from limbeck.core.terms import Clock
from limbeck.models.placement import placed
from limbeck.sources.model import is_causal, model_source


def distilling(trainer: type) -> Any:
    """A subclass of ``trainer`` (a ``transformers.Trainer``) that minimises an objective; see ``Distilling``."""
    return type(f"Distilling{trainer.__name__}", (Distilling, trainer), {"__doc__": Distilling.__doc__})


class Distilling:
    """Takes, beside the trainer's own arguments, what ``limbeck.core.stage.distill_step`` takes.

    ``objective`` compares student and teacher. ``teacher`` is a model, which is frozen and put on the device, or any
    source. ``student`` makes a source of the trained model, where the objective needs more than logits:
    ``lambda model: model_source(model, hidden=[-1])``. ``after`` is called once per optimizer step with the raw means
    of all terms (TAID's pace); what it remembers is not part of the trainer's checkpoints.

    The loss of the model itself and the trainer's label smoothing are not used.
    """

    loss_is_scaled_for_ga = True  # a share of the mean over the whole optimizer step: not to be divided again

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        teacher: Source | nn.Module,
        student: Callable[[Any], Source] = model_source,
        after: Sequence[After] = (),
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        host: Any = self
        require(
            host.args.n_gpu <= 1, "one process drives several devices here; start one for each with accelerate launch"
        )
        host.model_accepts_loss_kwargs = True  # how older trainers are told not to divide
        self.objective, self.after, self.make_student = objective, tuple(after), student
        model = isinstance(teacher, nn.Module)
        self.teacher: Source = model_source(placed(teacher, host.args.device)) if model else teacher
        self.sources: dict[int, Source] = {}
        self.record: Record | None = None
        self.row: Mapping[str, float] = {}
        if self.after:
            host.add_callback(_told(self))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Count the units of all micro-batches of the optimizer step, on all processes, before any of them."""
        host: Any = self
        samples, number = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        mine = count_units([to_batch(inputs, host.model) for inputs in samples])
        every = gather_object([mine]) if host.accelerator.num_processes > 1 else [mine]
        self.record = Record(host.state.global_step + 1, 0.0, Counts(add_up(every)))
        return samples, number

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's share of the mean; outside training, the mean over the batch."""
        host: Any = self
        batch = to_batch(inputs, host.model)
        source = self.sources.setdefault(id(model), self.make_student(model))
        with torch.no_grad():
            said = self.teacher(batch)
        heard = source(batch)
        terms = self.objective(heard, said, batch, Clock(host.state.global_step, host.state.max_steps))
        if model.training and self.record is not None:
            loss = terms.total(self.record.counts)
            self.record.hear(loss, terms)
            loss = loss * host.accelerator.num_processes  # whose gradients are averaged
        else:
            loss = terms.total(Counts(count_units([batch])))
        if not return_outputs:
            return loss
        return loss, {"loss": loss} | ({"logits": heard.logits_at()} if host.compute_metrics else {})

    def means(self) -> dict[str, float]:
        """Raw means of the terms of the last optimizer step, over all processes."""
        host: Any = self
        if self.record is not None and self.record.loss is not None:
            (self.row,) = read([self.record], host.accelerator.num_processes)
            self.record = None
        return {name: value for name, value in self.row.items() if name not in ("step", "lr", "grad_norm", "loss")}

    def log(self, logs: dict[str, float], *args: Any, **settings: Any) -> None:
        """The trainer's log, with the terms beside its loss."""
        more = self.means() if "loss" in logs else {}
        super().log({**logs, **more}, *args, **settings)  # type: ignore[misc]


def to_batch(inputs: Mapping[str, Any], model: Any) -> Batch:
    """The inputs of a Hugging Face model as a ``Batch``: labels shifted for causal models, texts packed by positions.

    ``labels`` b t are tokens (``IGNORE`` where nothing is supervised) or b classes. ``position_ids`` that begin anew
    within a row say where a packed text begins (TRL's packing and ``DataCollatorWithFlattening``).
    """
    for name in ("input_ids", "labels"):
        require(name in inputs, f"the trainer's batch needs {name!r}, but holds only {sorted(inputs)}")
    ids, labels = inputs["input_ids"], inputs["labels"]
    mask = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(ids).bool()
    batch: Batch = {"ids": ids, "mask": mask}
    if "token_type_ids" in inputs:
        batch["types"] = inputs["token_type_ids"]
    if labels.dim() == 1:
        return batch | {"labels": labels}
    if model.config.is_encoder_decoder:
        return _seq2seq(inputs, labels, mask, model)
    if is_causal(model):
        batch |= _packed(inputs.get("position_ids"), mask)
        targets, answer = shift(labels, labels != IGNORE)
        return batch | {"targets": targets, "answer": answer}
    return batch | {"targets": labels, "answer": labels != IGNORE}


def _seq2seq(inputs: Mapping[str, Any], labels: Tensor, mask: Tensor, model: Any) -> Batch:
    """The decoder reads the labels moved on by one, unless the collator says what it reads."""
    ids = inputs.get("decoder_input_ids")
    if ids is None:
        ids = model.prepare_decoder_input_ids_from_labels(labels=labels)
    read = inputs.get("decoder_attention_mask")
    return {
        "ids": ids,
        "mask": torch.ones_like(ids).bool() if read is None else read.bool(),
        "targets": labels,
        "answer": labels != IGNORE,
        "encoder_ids": inputs["input_ids"],
        "encoder_mask": mask,
    }


def _packed(positions: Tensor | None, mask: Tensor) -> Batch:
    if positions is None:
        return {}
    begins = (positions == 0) & mask
    if int(begins.sum(1).max()) <= 1:
        return {"positions": positions}
    return {"segment": torch.where(mask, begins.cumsum(1), 0)}


def _told(trainer: Distilling) -> Any:
    """Calls ``trainer.after`` at the end of every optimizer step."""
    from transformers import TrainerCallback

    class Told(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.means()
            for call in trainer.after:
                call(trainer.row, Clock(state.global_step, state.max_steps))

    return Told()
