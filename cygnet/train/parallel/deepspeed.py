"""DeepSpeed's ZeRO: optimizer state, gradients and weights cut over processes, stage by stage.

Stage 0 cuts nothing, 1 the optimizer state and full-precision weights, 2 the gradients too, 3 also
the weights (Rajbhandari et al. 2020, "ZeRO"). The optimizer is AdamW: ZeRO cuts across matrices,
which Muon needs whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cygnet.config import TrainConfig
from cygnet.errors import UserError
from cygnet.model.transformer import Transformer
from cygnet.text.loader import Batch
from cygnet.train.checkpoint import Piece, Read
from cygnet.train.layout import read_deepspeed, zero_settings
from cygnet.train.optim import MuonAdamW, build_optimizer, trainable
from cygnet.train.parallel.cutting import summed
from cygnet.train.parallel.group import be_a_group
from cygnet.train.parallel.single import Single
from cygnet.train.stage import Stage

STATES = ("mean", "square")
LOSS_SCALE_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeed(Single):
    """ZeRO, stages 0 to 3."""

    def _spread(self) -> None:
        self.data_rank, self.data_size = self.world.rank, self.world.size

    def _make_optimizer(self) -> Any:
        try:
            import deepspeed
            from deepspeed.accelerator import get_accelerator
            from deepspeed.utils import logger
        except ImportError as error:
            raise UserError(
                "--parallel deepspeed: DeepSpeed is not installed: pip install 'cygnet[deepspeed]'"
            ) from error
        logger.setLevel("WARNING")
        if self.hardware.dtype is torch.float16 and not get_accelerator().is_fp16_supported():
            raise UserError(
                f"--parallel deepspeed and fp16: DeepSpeed has no fp16 on {self.hardware.device}; "
                "give --dtype bf16 or fp32, or --parallel fsdp"
            )
        if self.hardware.device.type == "cpu":
            # Its own collectives in shared memory take a minute to compile and gain nothing here.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        be_a_group()  # where it is alone
        settings = deepspeed_settings(self.config, self.hardware.dtype, self.data_size)
        self.stage = settings["zero_optimization"]["stage"]
        optimizer = build_optimizer(self.model, self.config, self.muon_dtype)
        optimizer.counts_steps = False
        for group in optimizer.param_groups:
            # DeepSpeed may take a step to make the optimizer's state.
            group["lr"], group["steps"] = 0.0, 1
        if self.stage == 3:
            # The output matrix is used outside of its own module.
            deepspeed.zero.register_external_parameter(self.caller, self.model.output_weight)
        frequencies = self.model.inverse_frequencies.clone()
        self.engine, wrapped = self._initialize(optimizer, settings)
        self.caller = self.engine
        # DeepSpeed casts buffers with the weights, and rotations need float32.
        self.model.inverse_frequencies = nn.Buffer(frequencies, persistent=False)
        # DeepSpeed would look for the state of all groups when the first has made its step.
        self._make_states(wrapped)
        for group in wrapped.param_groups:
            group["steps"] = 0
        return wrapped

    def _initialize(self, optimizer: MuonAdamW, settings: dict[str, Any]) -> tuple[Any, Any]:
        """Return DeepSpeed's engine and its optimizer around ours."""
        import deepspeed
        from pydantic import ValidationError  # DeepSpeed's own dependency

        try:
            engine, wrapped, _, _ = deepspeed.initialize(
                model=self.caller, optimizer=optimizer, config=settings, dist_init_required=False
            )
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
            raise UserError(
                f"{self.config.deepspeed}: DeepSpeed refuses {'; '.join(wrong)}"
            ) from error
        return engine, wrapped

    def _forward_backward(
        self, stage: Stage, part: Batch, weight: int, is_last: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.engine.set_gradient_accumulation_boundary(is_last)
        loss, metrics = self.call(stage.loss, part)
        self.engine.backward(loss * self._loss_scale(weight), scale_wrt_gas=False)
        return loss.detach(), metrics

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        """Return each value summed over all processes."""
        return summed(sums, None)

    def update(self, scale: float, max_norm: float) -> float:
        """Make a step, and return the gradient's norm; DeepSpeed clips inside of it.

        From stage 1 on DeepSpeed itself leaves out a step whose gradient is not finite.
        """
        self._set_rates(scale)
        if self.stage == 0:
            # DeepSpeed clips here too, but keeps the norm to itself.
            norm = float(self._clip(max_norm))
            if math.isfinite(norm):
                self._step()
            return norm
        self._step()
        return float(self.engine.get_global_grad_norm())

    def _step(self) -> None:
        # Stage 3 makes its step in several parts, all of which are the same step of AdamW.
        for group in self.optimizer.param_groups:
            group["steps"] += 1
        self.engine.step()
        if not self.engine.was_step_applied():
            for group in self.optimizer.param_groups:
                group["steps"] -= 1

    def whole(self) -> Transformer:
        """Return the model with the full-precision weights of all processes."""
        from deepspeed import zero
        from deepspeed.utils import safe_get_full_fp32_param

        weights = self.model.state_dict()  # its buffers too
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                weights[name] = self._whole(parameter, safe_get_full_fp32_param).detach()
            else:
                with zero.GatheredParameters([parameter], enabled=self.stage == 3):
                    weights[name] = parameter.detach().to(torch.float32, copy=self.stage == 3)
        return self._built(weights)

    def pieces(self) -> Iterator[Piece]:
        """Yield this process's share of the parameters, each gathered whole by all of them."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for number, (name, parameter) in enumerate(trainable(self.model)):
            tensors = {"model": self._whole(parameter, safe_get_full_fp32_param)}
            for key in STATES:
                tensors[key] = self._whole(parameter, safe_get_full_optimizer_state, key)
            if number % self.world.size == self.world.rank:
                yield from (Piece(key, name, tensor) for key, tensor in tensors.items())

    def _whole(self, parameter: Tensor, get: Any, *key: str) -> Tensor:
        found = get(parameter, *key)
        if found is not None:
            return found
        # Stage 0 in float32 leaves parameters and optimizer as they are.
        return self.optimizer.state[parameter][key[0]] if key else parameter.detach()

    def load(self, keys: set[str], read: Read, counters: list[int]) -> None:
        """Take weights and optimizer state from a checkpoint."""
        from deepspeed import zero
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, parameter in trainable(self.model):
            size = getattr(parameter, "ds_shape", parameter.shape)[0]
            value = read(f"model/{name}", 0, 0, size)
            if self.stage == 0:
                parameter.data.copy_(value)
            else:
                safe_set_full_fp32_param(parameter, value)
            if self.stage == 3:
                with zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(value)
            for key in STATES:
                value = read(f"{key}/{name}", 0, 0, size)
                if self.stage == 0:
                    self.optimizer.state[parameter][key].copy_(value)
                else:
                    safe_set_full_optimizer_state(parameter, value, key)
        self._set_counters(counters)
        self._share_weights()

    def loss_scale_state(self) -> dict[str, Any]:
        """Return DeepSpeed's loss scale and its history; nothing where it has none."""
        scaler = getattr(self.optimizer, "loss_scaler", None)
        return {name: getattr(scaler, name) for name in LOSS_SCALE_STATE if hasattr(scaler, name)}

    def load_loss_scale_state(self, state: dict[str, Any]) -> None:
        """Take what `loss_scale_state` gave; that of another way of spreading begins anew."""
        if state.keys() == self.loss_scale_state().keys():
            for name, value in state.items():
                setattr(self.optimizer.loss_scaler, name, value)

    def _make_states(self, wrapped: Any) -> None:
        """Make the optimizer's state, which would come with the first step."""
        inner = getattr(wrapped, "optimizer", wrapped)
        parts = getattr(wrapped, "fp32_partitioned_groups_flat", None)  # stage 3
        if parts is None:
            parts = [p for group in inner.param_groups for p in group["params"]]
        for part in parts:
            for key in STATES:
                zeros = torch.zeros_like(part, dtype=torch.float32)
                inner.state[part].setdefault(key, zeros)
        if hasattr(wrapped, "_lazy_init_hp_params_optimizer_state"):
            wrapped._lazy_init_hp_params_optimizer_state()

    def _share_weights(self) -> None:
        """Bring the weights that compute into line with the full-precision ones."""
        if hasattr(self.optimizer, "update_lp_params"):
            self.optimizer.update_lp_params()


def deepspeed_settings(config: TrainConfig, dtype: torch.dtype, data_size: int) -> dict[str, Any]:
    """Return DeepSpeed's settings: a person's JSON, filled up with ours.

    Raises:
        UserError: the file cannot be read, or contradicts a flag; names both.
    """
    given = read_deepspeed(config.deepspeed)
    zero = zero_settings(given)
    stage = zero["stage"]
    micro_batch = config.micro_batch or 1
    rows = config.rows_per_batch
    accumulation = -(-rows // (data_size * micro_batch))
    flags = {
        "train_micro_batch_size_per_gpu": (micro_batch, "--micro_batch"),
        "gradient_accumulation_steps": (accumulation, "--batch_tokens and --micro_batch"),
        "train_batch_size": (micro_batch * accumulation * data_size, "--batch_tokens"),
        "gradient_clipping": (config.grad_clip, "--grad_clip"),
    }
    for name, (ours, flag) in flags.items():
        if given.get(name, "auto") not in ("auto", ours):
            raise UserError(
                f"{config.deepspeed}: {name} is {given[name]}, but {flag} "
                f"gives {ours}; make them agree, or leave {name} out"
            )
    for name in ("optimizer", "scheduler"):
        if name in given:
            raise UserError(
                f"{config.deepspeed}: leave `{name}` out; --optimizer, --learning_rate and "
                "--schedule decide it"
            )
    precision = _precision(config, given, dtype, stage)
    return {
        **given,
        **precision,
        # Accumulation is ours: the last micro-batch of a step is marked as such.
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "train_batch_size": micro_batch * data_size,
        "gradient_clipping": config.grad_clip if stage else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }


def _precision(
    config: TrainConfig, given: dict[str, Any], dtype: torch.dtype, stage: int
) -> dict[str, Any]:
    wanted = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    for name in ("bf16", "fp16"):
        enabled = given.get(name, {}).get("enabled", "auto")
        if enabled != "auto" and enabled != (name == wanted):
            raise UserError(
                f"{config.deepspeed}: {name}.enabled is {enabled}, but --dtype is {config.dtype}; "
                "make them agree"
            )
    if wanted == "fp16" and not stage:
        raise UserError(
            "ZeRO stage 0 and --dtype fp16: the gradient would be clipped with its loss scale in "
            "it; take stage 1, 2 or 3, or --parallel ddp, which is stage 0"
        )
    if wanted == "fp16":
        return {"fp16": {**given.get("fp16", {}), "enabled": True}, "bf16": {"enabled": False}}
    # Stage 0 would choose another optimizer for bf16 weights; float32 weights that are cast where
    # they are used compute the same as one process does.
    use_bf16 = wanted == "bf16" and stage > 0
    return {"bf16": {**given.get("bf16", {}), "enabled": use_bf16}, "fp16": {"enabled": False}}
