"""Every method that there is, by name."""

import re
from collections.abc import Iterable

from lorank.errors import RecipeError
from lorank.methods.adalora import ADALORA
from lorank.methods.eva import EVA
from lorank.methods.gradient import GRADIENT
from lorank.methods.i_lora import I_LORA
from lorank.methods.igu_lora import IGU_LORA
from lorank.methods.magnitude import MAGNITUDE
from lorank.methods.method import Method, Preset
from lorank.methods.sensitivity_lora import SENSITIVITY_LORA
from lorank.methods.uniform import UNIFORM
from lorank.validation import nearest

_ALL = (I_LORA, IGU_LORA, ADALORA, SENSITIVITY_LORA, GRADIENT, MAGNITUDE, EVA, UNIFORM)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}
# Full fine-tuning: a baseline of recipes and a control of comparisons. It has no adapters, so it is no method.
FULL = "full"
# Of `lorank.score` alone: a recipe makes the same search by method i-lora.
PROBE = "probe"


def unknown_method(name: str, known: Iterable[str] = METHODS) -> str:
    """What to say of a name that no method has: the nearest, all that there are, and how files with methods are given."""
    if name == PROBE:
        return "method 'probe' is of lorank.score alone; write method: i-lora, whose search is the same"
    names = list(known)
    hint = nearest(name, names)
    return f"method {name!r} is unknown{hint}; allowed: {', '.join(names)}; give --plugin FILE, if it is in a file"


def register(method: Method) -> Method:
    """Make a method of another package known by its name, to recipes and to `RankAllocation` of this process.

    A method that allocates while it trains is a set of choices; one that scores the frozen model brings a `scorer`::

        from lorank.engine.options import DeviationOptions, TrainingBatchChoices, TrainingBatchOptions

        patient = TrainingBatchChoices(
            measure=TrainingBatchOptions(estimator="training-pass", every=5), smooth=DeviationOptions(score="mean")
        )
        register(Method("patient", "ours", {"default": patient}, "default"))

    Returns:
        The method.

    Raises:
        RecipeError: it is no `Method`, a preset is no set of choices, its presets are of different classes, its default preset
            is not among them, or its name is taken: by another method, or by full fine-tuning.

    """
    if not isinstance(method, Method):
        raise RecipeError(f"register got {type(method).__name__}; give a lorank.Method")
    if not isinstance(method.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", method.name):
        raise RecipeError(f"a method is called {method.name!r}; allowed: letters, digits, - and _ (it names folders)")
    if method.name in (FULL, PROBE):
        of = {FULL: "the name of full fine-tuning", PROBE: "a name of lorank.score"}[method.name]
        raise RecipeError(f"a method is called {method.name!r}, {of}; give it another name")
    if method.default_preset not in method.presets:
        raise RecipeError(
            f"default_preset {method.default_preset!r} of {method.name} is none of its presets: {', '.join(method.presets)}"
        )
    for name, preset in method.presets.items():
        if not isinstance(preset, Preset):
            raise RecipeError(
                f"preset {name!r} of {method.name} is {type(preset).__name__}; give TrainingBatchChoices, ScoringSetChoices "
                "(lorank.engine.options) or FrozenModelChoices (lorank.methods)"
            )
        if type(preset) is not type(method.default):
            raise RecipeError(
                f"preset {name!r} of {method.name} is {type(preset).__name__}, its default preset "
                f"{type(method.default).__name__}; give all presets of a method as one of them"
            )
    if METHODS.get(method.name, method) is not method:
        raise RecipeError(f"a method {method.name!r} is registered already; give this one another name")
    METHODS[method.name] = method
    return method
