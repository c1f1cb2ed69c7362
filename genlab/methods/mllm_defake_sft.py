"""Supervised fine-tuning of a detector that explains (released code of Ji et al., arXiv 2504.14245; Gao et al., arXiv 2506.07045).

A vision-language model learns to say, of a picture and a question, reasons with boxes and a verdict: cross-entropy on the assistant's
tokens alone, averaged over all such tokens of an optimizer step, whatever accumulated batch or process they are in. Label 1 = generated.
"""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor

from genlab.batches import GroundedBatch
from genlab.errors import UserError
from genlab.training.detector_tuning import DetectorTuning
from genlab.vlm.masking import training_batch
from genlab.vlm.tuning import LoRA, shifted_loss


class MllmDefakeSFT(DetectorTuning):
    """Fine-tunes on grounding JSONL (``datamodules.grounding.Grounding``).

    Args:
        weights: Folder or hub id of a vision-language model of transformers, ``tiny:vlm``, or a folder of peft's.
        lora: Trains low-rank updates alone; ``null`` trains the whole language model.
        train_vision: Trains picture tower and projector too; the released recipe does not.
        regions: How regions are written, ``qwen`` or ``internvl``; ``null``: as the tokenizer's special tokens say.
        rescale_boxes: Qwen: boxes in pixels of what the model sees, after the processor has resized the picture. The released code leaves
            them in pixels of the file.
        max_length: Most tokens of a chat, those of the picture included. Released recipe: 8192.
        max_new_tokens: Longest reply in evaluation.
        gradient_checkpointing: Less memory, one more forward pass.
        lr: Peak learning rate of AdamW. Released recipe: 1e-5 for the whole model, 1e-4 for LoRA.
        betas: Of AdamW; ms-swift's default.
        weight_decay: On matrices; ms-swift's default.
        warmup: Share of the steps in which the rate rises; then it falls to 0 on a cosine.
    """

    def __init__(
        self,
        weights: str = "Qwen/Qwen2.5-VL-3B-Instruct",
        lora: LoRA | None = None,
        train_vision: bool = False,
        regions: Literal["qwen", "internvl"] | None = None,
        rescale_boxes: bool = False,
        max_length: int = 8192,
        max_new_tokens: int = 512,
        gradient_checkpointing: bool = False,
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        warmup: float = 0.05,
    ) -> None:
        super().__init__(lora)
        self.save_hyperparameters(logger=False)
        self._first, self._tokens = torch.zeros(()), torch.zeros(())

    def training_step(self, batch: GroundedBatch, batch_idx: int) -> Tensor:
        inputs = training_batch(self.processor, self.answers(batch), [[image] for image in batch["image"]])
        if (length := inputs["input_ids"].shape[1]) > self.hparams.max_length:
            longest = int((inputs["attention_mask"].sum(1)).argmax())
            raise UserError(
                f"model.max_length: the chat about {batch['id'][longest]} has {length} tokens, more than {self.hparams.max_length}. "
                "Raise it, or lower data.max_side."
            )
        labels = inputs.pop("labels").to(self.device)
        total, count = shifted_loss(self.model(**inputs.to(self.device)).logits, labels)
        loss = total * self._share(count, batch_idx)
        mean = (total / count.clamp_min(1)).detach()
        self.log("train/loss", mean, batch_size=int(count), prog_bar=True)
        self.log("train/unreadable", batch["substituted"].float().sum(), reduce_fx="sum")
        return loss

    def _share(self, count: Tensor, batch_idx: int) -> Tensor:
        """What to multiply a sum over tokens with, so that gradients become a mean over all tokens of the step.

        DDP averages over processes and Lightning over accumulated batches. The number of tokens of a step is known only at its end, so
        that what is left is done in `on_before_optimizer_step`; DeepSpeed keeps gradients to itself, and there each accumulated batch
        counts alike.
        """
        everywhere = count.detach().float().clone()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(everywhere)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._first, self._tokens = everywhere, torch.zeros_like(everywhere)
        self._tokens = self._tokens + everywhere
        return self.trainer.world_size / (everywhere if self._sharded else self._first).clamp_min(1)

    @property
    def _sharded(self) -> bool:
        return isinstance(self.trainer.strategy, DeepSpeedStrategy)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.trainer.accumulate_grad_batches == 1 or self._sharded:
            return
        factor = self.trainer.accumulate_grad_batches * self._first / self._tokens.clamp_min(1)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
