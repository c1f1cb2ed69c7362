"""Reinforcement learning of a detector that explains: GRPO (released code of Ji et al., arXiv 2504.14245; Shao et al., arXiv 2402.03300).

Of each picture's chat G completions are drawn; what each earns is compared with its group: A_i = (r_i - mean) / (std + 1e-4). The loss is
-min(rho A, clip(rho) A) + beta KL over their tokens. Label 1 = generated.

On policy the VALUE of the loss is beta times the divergence, whatever is learned, since advantages sum to zero: look at ``train/reward``.
"""

from __future__ import annotations

import html
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from genlab.batches import GroundedBatch
from genlab.errors import UserError
from genlab.files import write_bytes
from genlab.losses.grpo import Aggregation, completion_mask, group_advantages, grpo_loss, token_logprobs
from genlab.training.detector_tuning import DetectorTuning
from genlab.vlm.rollouts import Rollout, draw_completions
from genlab.vlm.scoring import Expected, Reward, WeightedReward
from genlab.vlm.tuning import LoRA, decode, evaluating, frozen_twin, repeat_rows, unspeakable, with_completions


class MllmDefakeGRPO(DetectorTuning):
    """Goes on from a fine-tuned model, on grounding JSONL (``datamodules.grounding.Grounding``).

    A step's prompts are ``data.batch_size`` times devices times accumulated batches; a prompt's completions stay on one device.

    Args:
        weights: Folder or hub id of a vision-language model of transformers, ``tiny:vlm``, or a folder of peft's, merged in.
        reward: What a completion earns; left out, form and verdict as in the released code.
        group: G. The released configuration has 4, its code 8.
        iterations: mu, passes over each step's completions; ``data.iterations`` has to be the same.
        epsilon: Of the clip.
        beta: Weight of the divergence from the model that training began with; 0 needs no second model.
        aggregation: ``seq_mean``: mean over tokens, then over completions (released code); ``token_mean``: over all tokens of all
            processes, so that long completions do not count less.
        scale_rewards: Divides by the group's standard deviation (released code); without it easy and hard questions are not blown up.
        skip_flat_groups: Groups that all earned the same, from which nothing is learned, are left out of the mean (ours).
        temperature: Of sampling. 1 draws from the policy, which the loss assumes.
        max_new_tokens: Longest completion. The released configuration has 256, which cuts off reasons with boxes.
        lora: Trains low-rank updates alone; ``null`` trains the whole language model.
        train_vision: Trains picture tower and projector too.
        regions: How regions are written, ``qwen`` or ``internvl``; ``null``: as the tokenizer's special tokens say.
        rescale_boxes: Qwen: boxes in pixels of what the model sees.
        gradient_checkpointing: Less memory, one more forward pass; the released configuration has it off.
        lr: Peak learning rate of AdamW. Released recipe, LoRA: 1e-5.
        betas: Of AdamW.
        weight_decay: On matrices.
        warmup: Share of the steps in which the rate rises; then it falls to 0 on a line.
        samples_every: Steps between two pages of completions in ``media/``.
        seed: Keys what is drawn, with step, picture and number in the group.
    """

    schedule: ClassVar[Literal["cosine", "linear"]] = "linear"

    def __init__(
        self,
        weights: str = "Qwen/Qwen2.5-VL-3B-Instruct",
        reward: Reward | None = None,
        group: int = 8,
        iterations: int = 1,
        epsilon: float = 0.2,
        beta: float = 0.04,
        aggregation: Literal["seq_mean", "token_mean"] = "seq_mean",
        scale_rewards: bool = True,
        skip_flat_groups: bool = False,
        temperature: float = 1.0,
        max_new_tokens: int = 512,
        lora: LoRA | None = None,
        train_vision: bool = False,
        regions: Literal["qwen", "internvl"] | None = None,
        rescale_boxes: bool = False,
        gradient_checkpointing: bool = False,
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup: float = 0.05,
        samples_every: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__(lora)
        self.save_hyperparameters(logger=False)
        if group < 2:
            raise UserError(f"model.group: {group} completions cannot be compared with each other; use 2 or more.")
        if iterations < 1 or temperature <= 0:
            raise UserError(f"model.iterations: {iterations}, model.temperature: {temperature}; use 1 or more, and more than 0.")
        self.reward = reward or WeightedReward()
        self.reference: Any = None
        self.rollouts: list[Rollout] = []

    def configure_model(self) -> None:
        if self.model is not None:
            return
        super().configure_model()
        if self.hparams.beta and self.lora is None:
            self.reference = frozen_twin(self.network)
            self.freeze_part("reference")

    def on_fit_start(self) -> None:
        super().on_fit_start()
        h, told = self.hparams, getattr(self.trainer.datamodule, "hparams", {}).get("iterations")  # type: ignore[attr-defined]
        if (told or 1) != h.iterations or (h.iterations > 1 and told is None):
            raise UserError(
                f"data.iterations: {told}, model.iterations: {h.iterations}; completions are used again only if their pictures come again. "
                "Set both to the same number."
            )

    # ---- a step

    def training_step(self, batch: GroundedBatch, batch_idx: int) -> Tensor:
        h, accumulate = self.hparams, self.trainer.accumulate_grad_batches
        place = batch_idx % (accumulate * h.iterations)
        if place < accumulate:
            self.rollouts = [*self.rollouts[:place], self._roll_out(batch, first=place == 0)]
        number = place % accumulate
        drawn = self.rollouts[number]
        logps = self._logprobs(self.model, drawn)
        if drawn.old is None:
            drawn = self.rollouts[number] = drawn._replace(old=logps.detach())
        assert drawn.old is not None
        mask = drawn.mask * self._counted(drawn)
        found = grpo_loss(logps, drawn.old, drawn.reference, drawn.advantages, mask, h.epsilon, h.beta, h.aggregation)
        loss = found.loss * self._share(mask, h.aggregation)
        values = {"train/loss": loss.detach(), "train/kl": found.kl, "train/clip_ratio": found.clip_ratio}
        self.log_dict(values | {"train/clip_ratio_official": found.clip_ratio_official}, batch_size=len(mask), sync_dist=True)
        self.log("train/unreadable", batch["substituted"].float().sum(), reduce_fx="sum")
        return loss

    def _counted(self, drawn: Rollout) -> Tensor:
        """(N, 1): 0 for groups that are left out."""
        if not self.hparams.skip_flat_groups:
            return torch.ones_like(drawn.advantages)[:, None]
        flat = (drawn.advantages.view(-1, self.hparams.group) == 0).all(1)
        return (~flat).float().repeat_interleave(self.hparams.group)[:, None]

    def _share(self, mask: Tensor, aggregation: Aggregation) -> Tensor:
        """Makes the mean over processes that DDP takes the mean over all rows, or all tokens, that count."""
        own = mask.sum() if aggregation == "token_mean" else (mask.sum(1) > 0).float().sum()
        everywhere = own.clone()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(everywhere)
        rows = len(mask) if aggregation == "seq_mean" else own.clamp_min(1)
        return rows * self.trainer.world_size / everywhere.clamp_min(1)

    @torch.no_grad()
    def _roll_out(self, batch: GroundedBatch, first: bool) -> Rollout:
        """Draws, rewards, and asks the reference."""
        h, step = self.hparams, self.trainer.global_step
        inputs = repeat_rows(self.prompts(batch), h.group, self.processor)
        keys = [(h.seed, "completion", step, name, number) for name in batch["id"] for number in range(h.group)]
        ends, pad = sorted(self.stop), self._tokenizer.pad_token_id
        pad = ends[0] if pad is None else pad
        with evaluating(self.model):
            tokens = draw_completions(self.model, inputs, keys, h.max_new_tokens, h.temperature, unspeakable(self.processor), ends, pad)
        mask = completion_mask(tokens, *ends)
        texts = decode(self.processor, tokens, self.stop)
        expected = [each for each in self.expected(batch) for _ in range(h.group)]
        terms = [self.reward.terms(text, each) for text, each in zip(texts, expected)]
        rewards = torch.tensor([float(sum(each.values())) for each in terms], device=self.device)
        advantages = group_advantages(rewards, h.group, h.scale_rewards)
        self._log_rewards(rewards, terms, mask, torch.isin(tokens, torch.tensor(ends, device=tokens.device)).any(1))
        drawn = Rollout(with_completions(inputs, tokens, mask), tokens, mask, advantages, None, None)
        if h.beta:
            drawn = drawn._replace(reference=self._reference_logprobs(drawn))
        if self.trainer.is_global_zero and step % h.samples_every == 0 and first:
            self._write_samples(batch, texts, terms, advantages)
        return drawn

    def _reference_logprobs(self, drawn: Rollout) -> Tensor:
        adapted = self.lora is not None
        model = self.model if adapted else self.reference
        with evaluating(model), self.model.disable_adapter() if adapted else nullcontext():
            return self._logprobs(model, drawn)

    def _logprobs(self, model: Any, drawn: Rollout) -> Tensor:
        """(N, C) log-probabilities of the completions' tokens."""
        count = drawn.completions.shape[1]
        logits = model(**drawn.inputs, logits_to_keep=count + 1).logits.float() / self.hparams.temperature
        never = torch.tensor(unspeakable(self.processor), device=logits.device)  # as in sampling
        return token_logprobs(logits.index_fill(-1, never, -torch.inf), drawn.inputs["input_ids"][:, -count - 1 :], count)

    # ---- what can be seen

    def _log_rewards(self, rewards: Tensor, terms: list[dict[str, float]], mask: Tensor, ended: Tensor) -> None:
        spread = rewards.view(-1, self.hparams.group).std(1)
        values = {"train/reward": rewards.mean(), "train/reward_spread": spread.mean(), "train/flat_groups": (spread == 0).float().mean()}
        values |= {f"train/reward_{name}": torch.tensor([float(each[name]) for each in terms]).mean() for name in terms[0]}
        values |= {"train/completion_length": mask.sum(1).mean(), "train/cut_off": 1 - ended.float().mean()}
        values = {name: value.to(self.device) for name, value in values.items()}
        self.log_dict(values, batch_size=len(rewards), prog_bar=False, sync_dist=True)

    def _write_samples(self, batch: GroundedBatch, texts: list[str], terms: list[dict[str, float]], advantages: Tensor) -> None:
        """``media/completions_step<step>.html``: the first pictures' chats with all their completions."""
        lines = []
        for i, name in enumerate(batch["id"][:4]):
            lines.append(f"<h2>{html.escape(name)}: {'generated' if batch['label'][i] == 1 else 'real'}</h2>")
            lines.append("<table><tr><th>reward<th>advantage<th>terms<th>completion</tr>")
            for j in range(i * self.hparams.group, (i + 1) * self.hparams.group):
                said = ", ".join(f"{key} {value:.2f}" for key, value in terms[j].items())
                numbers = f"<td>{sum(terms[j].values()):.2f}<td>{float(advantages[j]):+.2f}<td>{said}"
                lines.append(f"<tr>{numbers}<td>{html.escape(texts[j])}</tr>")
            lines.append("</table>")
        step = self.trainer.global_step
        style = "body{font-family:sans-serif}td,th{border:1px solid #ccc;padding:4px 8px;text-align:left}table{border-collapse:collapse}"
        page = f"<!doctype html><meta charset=utf-8><title>Step {step}</title><style>{style}</style><h1>Completions of step {step}</h1>"
        path = Path(self.trainer.default_root_dir) / "media" / f"completions_step{step:06d}.html"
        write_bytes(path, (page + "\n".join(lines)).encode())

    def extra_measures(self, said: str, expected: Expected) -> dict[str, float]:
        return {"reward": sum(self.reward.terms(said, expected).values())}

    # ---- resuming between two passes over the same completions

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._trainer is None or self.hparams.iterations == 1:
            return
        mine = [dict(each._asdict()) for each in self.rollouts]
        everyone: list[Any] = [mine]
        if self.trainer.world_size > 1:
            everyone = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everyone, mine)
        checkpoint["rollouts"] = everyone

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        everyone = checkpoint.get("rollouts")
        if everyone is None or self._trainer is None or not self.trainer.training:
            return
        if len(everyone) != self.trainer.world_size:
            raise UserError(
                f"ckpt_path: saved by {len(everyone)} processes in the midst of passes over the same completions; go on with as many."
            )
        self.rollouts = [Rollout(**_on(each, self.device)) for each in everyone[self.trainer.global_rank]]


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return {name: _on(each, device) for name, each in value.items()} if isinstance(value, dict) else value
