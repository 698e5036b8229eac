"""The linear layers of an adapter's base model, from its config alone: what an adapter can name, and of which shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig

from lorank.errors import AdapterError
from lorank.serving.adapter_files import AdapterFiles
from lorank.targets import find_targets
from lorank.training.adapted_model import model_class
from lorank.training.model import NOT_LOADABLE, quiet_loading
from lorank.validation import nearest


@dataclass(frozen=True)
class BaseLayers:
    """Linear layers of a base model.

    Attributes:
        name: hub name or folder.
        shapes: full module name, as the adapter's task class has it, -> `(d_out, d_in)`.
        config: the model's config.

    """

    name: str
    shapes: Mapping[str, tuple[int, int]]
    config: Any

    @classmethod
    def of(cls, adapter: AdapterFiles, name: str | None = None, *, trust_remote_code: bool = False) -> "BaseLayers":
        """Read the config of the base model (the one that the adapter names, or `name`); no weights are read.

        Raises:
            AdapterError: no base model is named, or it has no config that can be read.

        """
        name = name or adapter.config.get("base_model_name_or_path")
        if not name:
            raise AdapterError(f"{adapter.folder} names no base model; give --base")
        return cls.read(str(name), adapter.config.get("task_type"), trust_remote_code=trust_remote_code)

    @classmethod
    def read(cls, name: str, task_type: str | None, *, trust_remote_code: bool = False) -> "BaseLayers":
        """Build the model of a task on the meta device and list its layers.

        Raises:
            AdapterError: as `of`, or an unknown task type.

        """
        model = without_weights(name, task_type, trust_remote_code=trust_remote_code)
        shapes = {target.name: (target.d_out, target.d_in) for target in find_targets(model, ".*")}
        return cls(name, shapes, model.config)

    def check(self, adapter: AdapterFiles) -> None:
        """Refuse an adapter that is not for this model.

        Raises:
            AdapterError: names the first module that the model does not have, or has in another shape.

        """
        for module, pair in adapter.pairs.items():
            if module not in self.shapes:
                raise AdapterError(
                    f"{adapter.folder} adapts {module!r}, which {self.name} does not have as a linear layer"
                    f"{nearest(module, self.shapes)}; give the base model that it was trained on as --base"
                )
            if pair.shape != self.shapes[module]:
                raise AdapterError(
                    f"{adapter.folder}: {module!r} is for a layer of shape {pair.shape}, {self.name} has "
                    f"{self.shapes[module]}; give the base model that it was trained on as --base"
                )


def without_weights(
    name: str, task_type: str | None, *, num_labels: int | None = None, trust_remote_code: bool = False
) -> Any:
    """The base model of a task on the meta device: names and shapes, from its config; no weights are read.

    Raises:
        AdapterError: no config that can be read, or an unknown task type.

    """
    try:
        labels = {} if num_labels is None else {"num_labels": num_labels}
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **labels)
        family = model_class(task_type, config)
        with torch.device("meta"), quiet_loading():
            if hasattr(family, "from_config"):  # an Auto class
                return family.from_config(config, trust_remote_code=trust_remote_code)
            return family._from_config(config)
    except NOT_LOADABLE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise AdapterError(
            f"the base model {name!r} cannot be read: {reason}; give its hub name or folder as --base"
        ) from None
