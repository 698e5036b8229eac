"""The linear layers of an adapter's base model, without its weights: what an adapter can name, and of which shape."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lorank.errors import AdapterError
from lorank.module_names import expert_of, in_base_model, is_within
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.base.stored import stored_layers
from lorank.targets import linear_layers
from lorank.validation import nearest


@dataclass(frozen=True)
class BaseLayers:
    """Linear layers of a base model.

    Attributes:
        name: hub name or folder.
        shapes: full module name, as the adapter's task class has it, -> `(d_out, d_in)`.
        config: the model's config, or what is in its file.
        transposed: layers that store their weight as `(d_in, d_out)` (GPT-2's Conv1D).
        vocabulary: names of the input embedding and of the output layer, as far as a model has them, -> shape of the weight.
        output_layer: name of the output layer; None without one.
        tied_output: name of the output layer, where it shares the input embedding's weight; else None.
        fused_experts: names of modules that hold routed experts, all of them in one tensor.
        build: gives the model on the meta device; None where it is not known.

    """

    name: str
    shapes: Mapping[str, tuple[int, int]]
    config: Any
    transposed: frozenset[str] = frozenset()
    vocabulary: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    output_layer: str | None = None
    tied_output: str | None = None
    fused_experts: frozenset[str] = frozenset()
    build: Callable[[], Any] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, adapter: AdapterFiles, name: str | None = None, *, trust_remote_code: bool = False) -> "BaseLayers":
        """Layers of the base model, the one that the adapter names at the revision that it names, or `name`; no weights are read.

        They come from the model's files where these are certain to say what the built model would (`stored_layers`), and
        from the model that is built otherwise (`read`).

        Raises:
            AdapterError: no base model is named, or it has no config that can be read.

        """
        name = name or adapter.config.get("base_model_name_or_path")
        if not name:
            raise AdapterError(f"{adapter.folder} names no base model; give --base")
        name, task = str(name), adapter.config.get("task_type")
        revision = revision_for(adapter.config, name)
        if task is not None and (stored := stored_layers(name, task, adapter.pairs, revision)) is not None:
            build = partial(_built, name, task, {"trust_remote_code": trust_remote_code, "revision": revision})
            return cls(name, **vars(stored), build=build)
        from lorank.models.adapted_model import class_of, labels_of, model_class

        saved_class = class_of(adapter.config)
        options: dict[str, Any] = {
            "saved_class": saved_class,
            "trust_remote_code": trust_remote_code,
            "revision": revision,
        }
        layers = cls.read(name, task, **options)
        if any(layers.shapes.get(module, pair.shape) != pair.shape for module, pair in adapter.pairs.items()):
            # An adapted head may be for another number of labels than the base model's.
            saved = {in_base_model(key): tuple(tensor.shape) for key, tensor in adapter.saved_modules.items()}
            saved |= {f"{module}.weight": pair.shape for module, pair in adapter.pairs.items()}
            family = model_class(task, layers.config, saved_class)
            labels = labels_of(family, layers.config, saved, trust_remote_code=trust_remote_code)
            layers = layers if labels is None else cls.read(name, task, num_labels=labels, **options)
        return layers

    @classmethod
    def read(cls, name: str, task_type: str | None, **options: Any) -> "BaseLayers":
        """Build the model of a task on the meta device and list its layers; options are those of `without_weights`.

        What `of` reads from files is the same for every model that it can be read of.

        Raises:
            AdapterError: as `of`, or an unknown task type.

        """
        from transformers.pytorch_utils import Conv1D

        model = _built(name, task_type, options)
        modules = dict(model.named_modules())
        named = {id(module): full for full, module in modules.items()}
        first, last = (
            named.get(id(end)) for end in (_table(model.get_input_embeddings), _table(model.get_output_embeddings))
        )
        tied = first and last and getattr(model.config, "tie_word_embeddings", False)
        return cls(
            name,
            {full: (d_out, d_in) for full, (d_in, d_out) in linear_layers(model).items()},
            model.config,
            frozenset(full for full, module in modules.items() if isinstance(module, Conv1D)),
            {end: tuple(modules[end].weight.shape) for end in (first, last) if end is not None},
            output_layer=last,
            tied_output=last if tied else None,
            fused_experts=frozenset(
                full for full, module in modules.items() if full.endswith(".experts") and not any(module.children())
            ),
            build=lambda: model,
        )

    @classmethod
    def if_readable(
        cls, adapter: AdapterFiles, name: str | None = None, *, trust_remote_code: bool = False
    ) -> "tuple[BaseLayers | None, str]":
        """The base model, or None and why it cannot be read. A `name` that was given has to be readable.

        Raises:
            AdapterError: `name` was given, and `of` fails.

        """
        try:
            return cls.of(adapter, name, trust_remote_code=trust_remote_code), ""
        except AdapterError as error:
            if name is not None:
                raise
            return None, str(error)

    def check(self, adapter: AdapterFiles) -> None:
        """Refuse an adapter that is not for this model.

        Raises:
            AdapterError: names the first module that the model does not have, or has in another shape.

        """
        for module, pair in adapter.pairs.items():
            if module in self.shapes:
                if pair.shape != self.shapes[module]:
                    raise AdapterError(
                        f"{adapter.folder}: {module!r} is for a layer of shape {pair.shape}, {self.name} has "
                        f"{self.shapes[module]}; give the base model that it was trained on as --base"
                    )
            elif not (expert_of(module) and is_within(module, self.fused_experts)):
                raise AdapterError(
                    f"{adapter.folder} adapts {module!r}, which {self.name} does not have as a linear layer"
                    f"{nearest(module, self.shapes)}; give the base model that it was trained on as --base"
                )
        for key, tensor in {**adapter.saved_modules, **adapter.copies}.items():
            part = in_base_model(key).removesuffix(".weight").removesuffix(".base_layer")
            if part in self.vocabulary and tuple(tensor.shape) != self.vocabulary[part]:
                raise AdapterError(
                    f"{adapter.folder}: {part!r} has {len(tensor):,} rows and that of {self.name} {self.vocabulary[part][0]:,}: "
                    "the vocabulary was resized in training; save the resized base model and give it as --base"
                )


def revision_for(config: Mapping[str, Any], name: str) -> str | None:
    """Revision of the base model `name` that an adapter's config records; None where it is of another model, or none."""
    recorded = config.get("revision") if name == config.get("base_model_name_or_path") else None
    return None if recorded is None else str(recorded)


def _built(name: str, task_type: str | None, options: Mapping[str, Any]) -> Any:
    from lorank.serving.base.built import without_weights

    return without_weights(name, task_type, **options)


def _table(getter: Callable[[], Any]) -> Any:
    """The input embedding or the output layer that a model gives; None where it has none, as models of images or sound."""
    try:
        found = getter()
    except (NotImplementedError, AttributeError):
        return None
    import torch

    weight = getattr(found, "weight", None)
    return found if isinstance(weight, torch.Tensor) and weight.ndim == 2 else None
