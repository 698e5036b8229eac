"""`lorank.score`: every scorer that needs no run: of the frozen model, or of a short training that leaves no trace."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import ValidationError
from torch import nn

from lorank.artefact import versions
from lorank.errors import LorankWarning, RecipeError, ScoresError, TargetError
from lorank.methods import METHODS, FrozenModelChoices
from lorank.methods.choose import check_experts, preset_of
from lorank.methods.i_lora import I_LORA
from lorank.methods.probe import DEFAULT_PRESET, ProbeOptions, probe_scores
from lorank.methods.registry import PROBE
from lorank.model_parts import unwrapped
from lorank.models.base_size import base_parameters
from lorank.scores import ImportanceScores
from lorank.scoring.batches import Batch, SummedLoss, summed_loss
from lorank.scoring.one_shot import ScoringInput
from lorank.scoring.options import CalibrationOptions
from lorank.scoring.split.several_processes import in_all_processes
from lorank.targets import chosen_modules, experts_in, find_targets
from lorank.unsuitable import model_type_of
from lorank.validation import explain, nearest


def score(
    model: nn.Module,
    dataloader: Iterable[Batch] | None = None,
    method: str = "sensitivity-lora",
    *,
    scoring_data: Iterable[Batch] | None = None,
    targets: str | Sequence[str] | None = None,
    exclude_modules: str | Sequence[str] | None = None,
    target_parameters: str | Sequence[str] | None = None,
    loss: SummedLoss = summed_loss,
    seed: int = 0,
    preset: str | None = None,
    provenance: dict[str, Any] | None = None,
    **options: Any,
) -> ImportanceScores:
    """Score the linear layers (and experts) of a model before any training, in one pass over a few calibration batches.

    `method="probe"` trains instead: triplets, for `steps` steps on the batches of the loader, scored on those of `scoring_data`,
    and takes them off again, see `lorank.methods.probe`. `lorank.allocate` then ranks by score per parameter by itself.

    With several processes (torchrun, accelerate) all call it with the same model and batches, and all get the scores of one
    process: each passes a share of the batches through the model, and sums are added up. `"eva"` and `"probe"`, which are no
    sums over examples, are worked out whole by each.

    The model is left as it was: modules, weights, gradients, training mode, random streams; also by an error or an interrupt.

    Args:
        model: the base model as it will be trained (any dtype, quantised, spread over devices, compiled, wrapped in
            DataParallel or DistributedDataParallel), before `get_peft_model`.
        dataloader: mappings of model inputs, with `labels` where the score needs a loss; iterated once. A few hundred
            examples of the training data serve. `"magnitude"` needs none. `"probe"` trains on them, and begins again after
            the last: a DataLoader, or a list. Of several processes each reads all of them; a loader from
            `accelerator.prepare`, or with a DistributedSampler, is taken back to the whole.
        method: `"sensitivity-lora"`, `"gradient"`, `"magnitude"`, `"eva"` or `"probe"`.
        scoring_data: for `"probe"`, batches as the loader's, of examples that it does not have.
        targets: which layers, see `lorank.targets.find_targets`; None takes every linear layer inside the blocks.
        exclude_modules: which of them are left out: names or their ends, or a regular expression.
        target_parameters: parameters of fused experts that are scored too, see `find_targets`: `"all-experts"`, or names or their
            ends. For `"gradient"`, `"magnitude"` and `"sensitivity-lora"` with `estimator="fisher"`: the first and the last take
            the gradient of the parameter, one example at a time.
        loss: for models that are not called, or whose `labels` and `loss` are not, as transformers' are: a function of model
            and batch that returns the sum of the losses of all targets and the number of targets of each example,
            `(examples,)` on the CPU.
        seed: of what is drawn: Hutchinson's directions, and the bootstrap.
        preset: of the method; None is its default. Sensitivity-LoRA has `"per-output"` (the default) and
            `"recommended"` (both the Hessian of each layer's own squared error, `estimator="gram"`) and `"paper"` (the Hessian
            of the loss, arXiv 2509.09119, abstract: `estimator="fisher"`, which looks at gradients for the labels of the data;
            `estimator="hutchinson"` over it has neither of fisher's two differences to the Hessian, at many times the
            cost). `"probe"` has I-LoRA's presets, its default is `"loss-per-parameter"`.
        provenance: JSON values to record with the scores.
        **options: of the method, see `lorank.scoring.options`: for Sensitivity-LoRA `estimator="gram"`,
            `folds=16`, ...; for `"probe"` `steps` and `learning_rate` (needed), `initial_rank`, `scale`, `heads`; those that the
            method does not heed are refused.

    Returns:
        Scores for `lorank.allocate`, with standard errors and resamples where examples were looked at.

    Raises:
        RecipeError: an unknown method, preset or option, or one that is missing; a method that does not score experts.
        TargetError: no layer matches, or the model has adapters already, or is sharded in a way that cannot be scored (FSDP2
            can).
        DataError: no batches, or no labels where they are needed; processes that read different batches.
        ScoresError: a layer that never ran, or something that is not finite; processes with different weights.

    Warns:
        LorankWarning: layers that are left out, traces that are not above their standard error, scores of a single example or
            scoring batch, or a model that is wrapped (torch.compile, DataParallel).

    """
    if not isinstance(model, nn.Module):
        raise TargetError(f"model is {type(model).__name__}; give the loaded model, for example from from_pretrained")
    if (inside := unwrapped(model)) is not model:
        warnings.warn(
            f"the model is wrapped ({type(model).__name__}), and what is inside is scored; give get_peft_model what is "
            "inside too (lorank.model_parts.unwrapped(model)), and wrap it afterwards: PEFT does not find the plan's names "
            "in the wrapper",
            LorankWarning,
            stacklevel=2,
        )
        model = inside
    chosen_preset, chosen = _chosen(method, preset, options)
    if target_parameters is not None:
        check_experts(method, chosen)
    if method != PROBE and scoring_data is not None:
        raise RecipeError(f"scoring_data is for method 'probe'; {method!r} does not train, leave it out")
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ScoresError(
            "the model was made inside of torch.inference_mode(), so no gradient can be taken of it; load it outside"
        )
    if adapted := next((name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)), None):
        raise TargetError(f"{adapted!r} carries an adapter already; score the base model, before get_peft_model")
    found = {
        "method": method,
        "preset": chosen_preset,
        "model": getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__,
        "model_type": model_type_of(model),
        "base_parameters": base_parameters(model),
        **chosen_modules(targets, exclude_modules, target_parameters),
        "versions": versions(),
        **(provenance or {}),
    }
    if method != PROBE and isinstance(decided := METHODS[method].presets[chosen_preset], FrozenModelChoices):
        found["choices"] = {"ranks": decided.ranks.model_dump(mode="json")}  # allocate ranks as the preset does
    chosen_targets = find_targets(model, targets, exclude_modules, target_parameters)
    found = {**experts_in(chosen_targets), **found}
    scoring = ScoringInput(model, chosen_targets, dataloader, chosen, loss, seed, found)
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in
        return in_all_processes(
            model,
            {
                "method": method,
                "preset": chosen_preset,
                "options": chosen.model_dump(mode="json"),
                "targets": [target.name for target in chosen_targets],
                "seed": seed,
            },
            lambda: (
                probe_scores(scoring, scoring_data, chosen_preset)
                if method == PROBE
                else METHODS[method].score(scoring)
            ),
        )


def _chosen(method: str, preset: str | None, options: Mapping[str, Any]) -> tuple[str, CalibrationOptions]:
    """The preset by its name, and the method's options: the preset's, and over them those given.

    Raises:
        RecipeError: an unknown method, preset or option, or a bad value.

    """
    known = [*(name for name, one in METHODS.items() if one.scorer is not None), PROBE]
    if method not in known:
        why = (
            "scores while it trains: use `lorank run` or lorank.RankAllocation"
            if method in METHODS
            else f"is unknown{nearest(method, known)}"
        )
        raise RecipeError(f"method {method!r} {why}; to score before training: {', '.join(known)}")
    measure: CalibrationOptions | None
    if method == PROBE:
        name, measure = preset_of(I_LORA, preset or DEFAULT_PRESET), ProbeOptions()
    else:
        name = preset_of(METHODS[method], preset)
        choices = METHODS[method].presets[name]
        measure = choices.measure if isinstance(choices, FrozenModelChoices) else None
    kind = type(measure or CalibrationOptions())
    for key in options:
        if key not in kind.model_fields:
            own = [*kind.model_fields, "targets", "exclude_modules", "target_parameters", "loss", "seed", "preset"]
            hint = " (did you mean targets?)" if key == "target_modules" else nearest(key, own)
            raise RecipeError(f"{key}: no option of method {method!r}{hint}; allowed: {', '.join(own)}")
    values = {} if measure is None else measure.model_dump(exclude_unset=True)
    try:
        return name, kind(**{**values, **options})
    except ValidationError as error:
        raise RecipeError(explain(error, kind)) from None
