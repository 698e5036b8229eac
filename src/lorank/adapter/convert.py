"""From a plain PEFT LoRA to triplets and back: `B A` becomes `P diag(λ) Q`, and a finished adapter is folded again."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorank.adapter.adapted_part import adapted_part, base_of
from lorank.adapter.triplet import TripletAdapter, TripletLinear
from lorank.errors import AdapterError, LorankWarning
from lorank.experts import adapted_name
from lorank.lora_options import exactly, whole
from lorank.models.quantization import keep_gradients
from lorank.module_names import leaf_of, parent_of

# Starts that leave the base model alone, and of these the ones that fresh triplets do not lose.
_STARTS = (True, False, "gaussian", "orthogonal", "eva")
_NOTHING_LOST = (True, False, "gaussian")
# In the config of an adapter of triplets, in place of its start: whatever is saved before it is folded looks like a LoRA, and
# PEFT, which would load P and Q without λ, refuses it in these words.
UNFINISHED = "triplets of lorank, not yet a LoRA: save the adapter after training has ended"


def trained_adapter(model: nn.Module) -> str:
    """Name of the one LoRA adapter of `model` that is trained.

    Raises:
        AdapterError: there is none, or more than one, or it is of another PEFT type.

    """
    configs: Any = adapted_part(model).peft_config
    trained = sorted(
        {
            name
            for layer in model.modules()
            if isinstance(layer, LoraLayer)
            for name in (*layer.lora_A, *layer.lora_embedding_A)
            if any(parameter.requires_grad for parameter in _tensors(layer, name))
        }
    )
    if len(trained) != 1:
        kinds = ", ".join(f"{name} ({each.peft_type.value})" for name, each in configs.items())
        found = f"{len(trained)} LoRA adapters that train ({', '.join(trained)})" if trained else "no LoRA that trains"
        raise AdapterError(
            f"the model has {found}; exactly one is needed, set by LoraConfig. Its adapters are: {kinds}"
        )
    if configs[trained[0]].peft_type.value != "LORA":
        raise AdapterError(
            f"adapter {trained[0]!r} is {configs[trained[0]].peft_type.value}; give a plain LoraConfig, "
            "lorank brings its own triplets"
        )
    return trained[0]


def adapted_layers(model: nn.Module, adapter_name: str) -> dict[str, LoraLayer]:
    """Full names of the layers that carry the adapter, and the layers; all of them can be triplets.

    Raises:
        AdapterError: there is none, or one has no triplet form (embedding, convolution, DoRA, bias, expert tensors), or the
            adapter's start (`init_lora_weights`) has changed the base weights.

    """
    configs: Any = model.peft_config
    start = configs[adapter_name].init_lora_weights
    if start not in (*_STARTS, UNFINISHED):
        raise AdapterError(
            f"init_lora_weights is {start!r}, which changes the base weights by the rank an adapter starts with; ranks cannot "
            "change after that, use init_lora_weights=True"
        )
    layers = dict(_lora_layers(model, adapter_name))
    if not layers:
        raise AdapterError(f"no layer carries an adapter {adapter_name!r}; check target_modules of its LoraConfig")
    for name, layer in layers.items():
        _check(name, layer, adapter_name)
    return layers


@torch.no_grad()
def to_triplets(model: nn.Module, adapter_name: str, *, initial_lambda: float = 0.0) -> TripletAdapter:
    """Make triplets of a LoRA adapter, in place; modules and their parameters A and B stay the same objects.

    An adapter that does nothing yet (`B = 0`) starts as AdaLoRA's: P, Q ~ N(0, 0.02) and `λ = initial_lambda`. A trained
    one keeps its function: `B A = U diag(σ) Vᵀ`, `P = U`, `λ = σ`, `Q = Vᵀ` (IGU-LoRA, eq. 3). A rank above the
    smaller side of its layer is lowered to it, with a warning. Triplets that
    are there already stay, but for a start of `initial_lambda`.

    Raises:
        AdapterError: as `adapted_layers`, a start of `A` that fresh triplets would silently lose, or 4-bit weights that are
            packed for inference (`keep_gradients`).

    """
    layers = adapted_layers(model, adapter_name)
    keep_gradients(model)
    cap_ranks(layers, adapter_name)
    configs: Any = model.peft_config
    config = configs[adapter_name]
    start = config.init_lora_weights
    for layer in layers.values():
        if isinstance(layer, TripletLinear) and adapter_name in layer.lora_lambda:
            values = layer.lora_lambda[adapter_name]
            if not bool(values.any()):
                values.fill_(initial_lambda)
            continue
        a, b = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        fresh = not bool(b.any())
        if fresh and start not in _NOTHING_LOST:
            raise AdapterError(
                f"init_lora_weights is {start!r}, a start that triplets would lose; use init_lora_weights=True"
            )
        if not isinstance(layer, TripletLinear):
            layer.lora_lambda = nn.ParameterDict()
            layer.plain_class = type(layer)
            layer.__class__ = TripletLinear
        values = torch.full((len(a),), initial_lambda, dtype=a.dtype, device=a.device)
        layer.lora_lambda[adapter_name] = nn.Parameter(values)
        if fresh:
            nn.init.normal_(a, std=0.02)
            nn.init.normal_(b, std=0.02)
        else:
            u, sigma, v = _svd_of_product(b, a)
            b.copy_(u)
            a.copy_(v)
            layer.lora_lambda[adapter_name].copy_(sigma)
    config.init_lora_weights = UNFINISHED
    return TripletAdapter.of(model, adapter_name)


def starting_rank(layer: LoraLayer, adapter_name: str) -> int:
    """Rank that a layer has when `to_triplets` is done: its own, but no more than its matrix can have."""
    return min(int(layer.r[adapter_name]), layer.in_features, layer.out_features)


@torch.no_grad()
def cap_ranks(layers: Mapping[str, LoraLayer], adapter_name: str) -> None:
    """Lower ranks that are above the smaller side of their layer (a gate with one output), in place; `B A` stays what it is.

    The scale `alpha / r` stays too. One warning says which layers these are.
    """
    lowered = {}
    for name, layer in layers.items():
        rank, most = int(layer.r[adapter_name]), starting_rank(layer, adapter_name)
        if rank == most:
            continue
        lowered[name] = f"{rank} to {most}"
        a, b = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        new_a, new_b = a[:most], b[:, :most]
        if bool(b.any()):
            u, sigma, v = _svd_of_product(b, a)
            root = sigma[:most].sqrt()
            new_a, new_b = (root[:, None] * v[:most]).to(a.dtype), (u[:, :most] * root).to(b.dtype)
        a.data, b.data = new_a.contiguous().clone(), new_b.contiguous().clone()
        layer.r[adapter_name] = most
        layer.lora_A[adapter_name].out_features = layer.lora_B[adapter_name].in_features = most
        layer.lora_alpha[adapter_name] = layer.scaling[adapter_name] * most
    if lowered:
        name, change = next(iter(lowered.items()))
        more = f" and {len(lowered) - 1} more" if len(lowered) > 1 else ""
        warnings.warn(
            f"{name!r}{more} cannot have the rank that the adapter starts with, which is above the smaller side of the layer; it "
            f"is lowered ({name!r}: {change})",
            LorankWarning,
            stacklevel=3,
        )


@torch.no_grad()
def fold_to_lora(model: nn.Module, adapter: TripletAdapter, scale: float) -> None:
    """Make a plain, compact PEFT LoRA of the triplets, in place: the same function, `B A · scale = s · P diag(λ) Q`.

    `A = √|λ| Q` and `B = sign(λ) √|λ| P · s / scale` (IGU-LoRA's code), computed in at least fp32.
    Modules of rank 0 lose the adapter, and go back to their base layer if they have no other. The PEFT config then says
    what is there: target modules, `rank_pattern`, `alpha_pattern` keyed by `^full.name$`.

    Args:
        model: carries `adapter`.
        adapter: its triplets; afterwards the view is of no more use.
        scale: `alpha / r` of every module afterwards.

    Raises:
        AdapterError: every rank is 0.

    """
    adapter_name = adapter.adapter_name
    ranks = dict(zip(adapter.names, adapter.ranks, strict=True))
    if not any(ranks.values()):
        raise AdapterError("every rank is 0, so there is no adapter to fold; allocate a larger budget")
    base = base_of(model)
    for name, layer in zip(adapter.names, adapter.layers, strict=True):
        values, q, p = layer.factors_of(adapter_name)
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        root = wide.abs().sqrt()
        q.copy_(root[:, None] * q.to(wide.dtype))
        p.copy_(p.to(wide.dtype) * (wide.sign() * root * (layer.scaling[adapter_name] / scale)))
        del layer.lora_lambda[adapter_name]
        layer.scaling[adapter_name], layer.lora_alpha[adapter_name] = scale, scale * ranks[name]
        if not ranks[name]:
            # Deleting makes another adapter the active one, and lets it train.
            active, trained = layer._active_adapter, [(p, p.requires_grad) for p in layer.parameters()]
            layer.delete_adapter(adapter_name)
            layer._active_adapter = active
            for parameter, trains in trained:
                parameter.requires_grad_(trains)
        if not layer.lora_lambda:
            layer.__class__ = getattr(layer, "plain_class", LoraLinear)
            del layer.lora_lambda
        if not layer.lora_A:
            parent, child = parent_of(name), leaf_of(name)
            setattr(base.get_submodule(parent), child, layer.get_base_layer())
    configs: Any = model.peft_config
    _describe(configs[adapter_name], ranks, scale)


def _describe(config: Any, ranks: Mapping[str, int], scale: float) -> None:
    """Write the ranks into a LoraConfig, as `RankPlan.lora_config` does for a new one."""
    adapted = {name: rank for name, rank in ranks.items() if rank}
    config.r, config.lora_alpha = max(adapted.values()), whole(scale * max(adapted.values()))
    config.rank_pattern = {exactly(name): rank for name, rank in adapted.items()}
    config.alpha_pattern = {exactly(name): whole(scale * rank) for name, rank in adapted.items()}
    config.target_modules, config.exclude_modules = set(adapted), None
    config.layers_to_transform = config.layers_pattern = None
    config.use_rslora = False  # its factor is part of the scale now
    config.init_lora_weights = True
    config._custom_modules = None


def _svd_of_product(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`U (d_out, r)`, `σ (r,)` and `Vᵀ (r, d_in)` of `B A`, by QR of both, so nothing of size d x d is made."""
    wide = torch.promote_types(b.dtype, torch.float32)
    left, upper = torch.linalg.qr(b.to(wide))
    right, lower = torch.linalg.qr(a.to(wide).T)
    u, sigma, v = torch.linalg.svd(upper @ lower.T)
    return left @ u, sigma, v @ right.T


def _tensors(layer: LoraLayer, adapter_name: str) -> Iterator[nn.Parameter]:
    for held in (layer.lora_A, layer.lora_embedding_A):
        if adapter_name in held:
            item = held[adapter_name]
            yield from item.parameters() if isinstance(item, nn.Module) else (item,)


def _lora_layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, LoraLayer]]:
    for name, layer in base_of(model).named_modules():
        if isinstance(layer, LoraLayer) and any(True for _ in _tensors(layer, adapter_name)):
            yield name, layer


def _check(name: str, layer: LoraLayer, adapter_name: str) -> None:
    linear = isinstance(layer.get_base_layer(), (nn.Linear, Conv1D)) and adapter_name in layer.lora_A
    if hasattr(layer, "parameter_name"):
        raise AdapterError(
            f"{adapted_name(name, layer)!r} is a parameter of experts (target_parameters), and only linear layers become "
            "triplets: leave it out, or score before training, lorank.score(..., target_parameters=...), and train the plan"
        )
    if not linear:
        raise AdapterError(
            f"{name!r} is adapted by {type(layer).__name__} on {type(layer.get_base_layer()).__name__}; ranks are allocated "
            "to linear layers only, leave it out of target_modules"
        )
    if getattr(layer, "lora_variant", {}) or any(getattr(layer, "lora_bias", {}).values()):
        raise AdapterError(
            f"{name!r} uses DoRA, another LoRA variant or lora_bias; triplets have none of them, leave it off"
        )
    if layer.merged:
        raise AdapterError(f"{name!r} is merged into its base layer; unmerge it before training")
