"""The triplet adapter `dW = scale · P diag(λ) Q` as a PEFT LoRA layer (AdaLoRA, section 3.1; I-LoRA, section 1.1).

`Q: (r, d_in)` is PEFT's `lora_A`, `P: (d_out, r)` its `lora_B`, and `λ: (r,)` the new `lora_lambda`. Triplet i is
`(P[:, i], λ[i], Q[i, :])`: one unit of rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from lorank.errors import AdapterError

INITIAL_DEVIATION = 0.02  # of P and Q (AdaLoRA's code; I-LoRA is built on it)


class TripletLinear(LoraLinear):
    """A LoRA layer with a diagonal between its factors.

    `λ = 0` and `P, Q ~ N(0, 0.02)` at the start, so the adapted layer begins as the base layer. The scale and λ are
    applied on the r-wide side, where they cost `r` multiplications a token, not `d_out`.
    """

    adapter_layer_names = (*LoraLinear.adapter_layer_names, "lora_lambda")
    # Factor of every adapter's output while training; IGU-LoRA's code draws it anew for each micro-batch.
    training_gain: float = 1.0

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        """Add the adapter `adapter_name` of rank `r` (PEFT calls this)."""
        if config.use_dora or config.use_rslora or config.lora_bias:
            raise AdapterError("a triplet adapter has no DoRA, rsLoRA or bias form; leave these options off")
        if not hasattr(self, "lora_lambda"):
            self.lora_lambda = nn.ParameterDict()
        weight = self.get_base_layer().weight
        # 8-bit and 4-bit weights are stored as integers; an adapter is always floating point.
        dtype = weight.dtype if weight.dtype.is_floating_point else torch.float32
        self.lora_lambda[adapter_name] = nn.Parameter(torch.zeros(r, dtype=dtype, device=weight.device))
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    def reset_lora_parameters(self, adapter_name: str, init_lora_weights: bool | str) -> None:
        """Draw `P, Q ~ N(0, 0.02)` and set `λ = 0`, whatever kind of start the config names."""
        nn.init.normal_(self.lora_A[adapter_name].weight, std=INITIAL_DEVIATION)
        nn.init.normal_(self.lora_B[adapter_name].weight, std=INITIAL_DEVIATION)
        nn.init.zeros_(self.lora_lambda[adapter_name])

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """`scale · P diag(λ) Q`, shape of the base weight, in the adapter's dtype; what merging adds."""
        if adapter not in self.lora_lambda:
            return super().get_delta_weight(adapter)
        left = self.lora_B[adapter].weight * (self.lora_lambda[adapter] * self.scaling[adapter])
        delta = left @ self.lora_A[adapter].weight
        return delta.T if self.fan_in_fan_out else delta

    def resize(self, adapter_name: str, rank: int) -> None:
        """Give one adapter parameters of another rank; the values are then anything."""
        values, q, p = self.factors_of(adapter_name)
        new = (values.new_empty(rank), q.new_empty(rank, self.in_features), p.new_empty(self.out_features, rank))
        self.replace_factors(adapter_name, *(nn.Parameter(t, requires_grad=values.requires_grad) for t in new))

    def replace_factors(self, adapter_name: str, values: nn.Parameter, q: nn.Parameter, p: nn.Parameter) -> None:
        """Put other parameters in place of λ, Q and P of one adapter; the rank is theirs."""
        self.lora_lambda[adapter_name] = values
        self.lora_A[adapter_name].weight, self.lora_B[adapter_name].weight = q, p
        rank = self.r[adapter_name] = len(values)
        self.lora_A[adapter_name].out_features = self.lora_B[adapter_name].in_features = rank

    def factors_of(self, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        """λ, Q and P of one adapter."""
        return self.lora_lambda[adapter_name], self.lora_A[adapter_name].weight, self.lora_B[adapter_name].weight

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # A checkpoint written after triplets were cut away has fewer of them. Trainer loads it before any callback is
        # asked, so the layer itself follows the shapes of what it is given.
        for name, values in self.lora_lambda.items():
            found = state_dict.get(f"{prefix}lora_lambda.{name}")
            if found is not None and len(found) != len(values):
                self.resize(name, len(found))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Base layer plus every active adapter, `W x + P ((λ · scale) ∘ (Q dropout(x)))`; x is `(..., d_in)`."""
        if kwargs.get("adapter_names") is not None:
            raise AdapterError("a triplet adapter cannot mix adapters within a batch; fold it to plain LoRA first")
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for name in self.active_adapters:
            if name not in self.lora_A or not self.r[name]:
                continue
            q, p = self.lora_A[name].weight, self.lora_B[name].weight
            gain: Any = self.scaling[name]
            if name in self.lora_lambda:  # otherwise a plain LoRA adapter beside the triplets
                gain = self.lora_lambda[name] * (gain * self.training_gain if self.training else gain)
            narrow = linear(self.lora_dropout[name](self._cast_input_dtype(x, q.dtype)), q)
            result = result + linear(narrow * gain, p)
        return result.to(dtype)


class TripletConv1D(TripletLinear):
    """The same for GPT-2's Conv1D, whose weight is stored transposed, `(d_in, d_out)`."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        super().__init__(base_layer, adapter_name, config=config, **kwargs)
        self.fan_in_fan_out = True
        self.is_target_conv_1d_layer = True


def triplet_config(config: LoraConfig) -> LoraConfig:
    """Make `get_peft_model(model, config)` put triplet adapters in place of LoRA layers. Returns the same config."""
    config._register_custom_module({nn.Linear: TripletLinear, Conv1D: TripletConv1D})
    return config


@dataclass
class TripletAdapter:
    """All triplet factors of one adapter of a model, as parallel lists; units are numbered through the lists.

    The lists are read once, because they are used at every step; `refresh` reads them again.

    Attributes:
        names: full names of the adapted modules in the base model.
        p: `(d_out, r_m)` each.
        lambdas: `(r_m,)` each.
        q: `(r_m, d_in)` each.
        layers: the modules that hold them.
        adapter_name: PEFT's name of the adapter.

    """

    names: tuple[str, ...]
    p: tuple[nn.Parameter, ...]
    lambdas: tuple[nn.Parameter, ...]
    q: tuple[nn.Parameter, ...]
    layers: tuple[TripletLinear, ...]
    adapter_name: str

    @classmethod
    def of(cls, model: nn.Module, adapter_name: str = "default") -> "TripletAdapter":
        """Collect the factors of `adapter_name`.

        Raises:
            AdapterError: the model carries no triplet adapter of that name.

        """
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        layers: Mapping[str, TripletLinear] = {
            name: module
            for name, module in base.named_modules()
            if isinstance(module, TripletLinear) and adapter_name in module.lora_lambda
        }
        if not layers:
            raise AdapterError(
                f"{type(base).__name__} carries no triplet adapter {adapter_name!r}; "
                "make one with get_peft_model(model, triplet_config(LoraConfig(...)))"
            )
        found = cls(tuple(layers), (), (), (), tuple(layers.values()), adapter_name)
        found.refresh()
        return found

    def refresh(self) -> None:
        """Read the parameters again, after some were replaced."""
        factors = [layer.factors_of(self.adapter_name) for layer in self.layers]
        self.lambdas, self.q, self.p = (tuple(part) for part in zip(*factors, strict=True))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Units of each module."""
        return tuple(len(values) for values in self.lambdas)

    def factors(self, moved: str = "lambda") -> tuple[nn.Parameter, ...]:
        """The parameters that a path moves: every λ, or with `"all"` every λ, then every P, then every Q."""
        return self.lambdas if moved == "lambda" else (*self.lambdas, *self.p, *self.q)

    def only(self, *indices: int) -> "TripletAdapter":
        """The same view on the modules with these numbers alone."""
        return TripletAdapter(
            tuple(self.names[index] for index in indices),
            tuple(self.p[index] for index in indices),
            tuple(self.lambdas[index] for index in indices),
            tuple(self.q[index] for index in indices),
            tuple(self.layers[index] for index in indices),
            self.adapter_name,
        )

    @torch.no_grad()
    def switch_off(self, kept: Mapping[str, torch.Tensor]) -> None:
        """Set λ to zero wherever `kept[name]`, a boolean `(r_m,)`, is False. P and Q stay, so a triplet can come back."""
        torch._foreach_mul_(
            list(self.lambdas),
            [kept[name].to(values) for name, values in zip(self.names, self.lambdas, strict=True)],
        )
