"""YAML of recipes and overrides, read in bounded time and memory: a recipe may come from a stranger."""

import re
from itertools import accumulate
from typing import Any

import yaml

from lorank.errors import one_line

LONGEST = 100_000  # characters
_OF_RUN = 20  # times as long, and as many values: recipe.yaml of a run holds the names of all labels
_BRACKETS = 1000  # open at a time; some may stand in strings
MOST, DEEPEST = 20_000, 20  # values, those behind aliases counted each time; mappings and lists around a value


def yaml_content(text: str, *, of_run: bool = False) -> Any:
    """What a YAML text says.

    Args:
        text: of a recipe, or a value of an override.
        of_run: it is what a run wrote into its folder, which may be longer.

    Raises:
        ValueError: not YAML, a key that is given twice, a date or number that there is not, or more than a recipe can be.

    """
    times = _OF_RUN if of_run else 1
    if len(text) > times * LONGEST:
        raise ValueError(f"it has {len(text):,} characters, and at most {times * LONGEST:,} are read")
    if _unclosed(text) > _BRACKETS:
        raise ValueError("lists or mappings stand too deep in each other")
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(one_line(error)) from None
    except (
        LookupError,
        TypeError,
        AttributeError,
    ) as error:  # PyYAML's, of tags that do not fit their values: `!!int ''`
        raise ValueError(f"a value does not fit its tag ({type(error).__name__})") from None
    except RecursionError:
        raise ValueError("lists or mappings stand too deep in each other") from None
    _check_size(content, times * MOST)
    return content


def _unclosed(text: str) -> int:
    """How many brackets are open at a time, at most. PyYAML's time grows with the cube of it."""
    depths = accumulate(1 if found[0] in "[{" else -1 for found in re.finditer(r"[\[\]{}]", text))
    return max(depths, default=0)


def _check_size(content: Any, most: int) -> None:
    """Refuse content that is small as text and endless when it is followed: aliases of aliases, a list within itself."""
    seen, waiting = 0, [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if seen > most or depth > DEEPEST:
            raise ValueError(f"it holds more than {most:,} values, or values deeper than {DEEPEST} levels")
        if isinstance(value, dict):
            waiting += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, list | set | tuple):
            waiting += [(one, depth + 1) for one in value]
        elif isinstance(value, int) and abs(value) > 10**30:
            raise ValueError("it holds a number of more than 30 digits")


class _Loader(yaml.SafeLoader):
    """YAML of which a key that is given twice is no silent choice of the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        keys = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                problem = "merge keys (<<) are not read: write the keys out"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if isinstance(key_node, yaml.ScalarNode):
                key = self.construct_object(key_node, deep=True)
                if key in keys:
                    problem = f"the key {key!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
                keys.add(key)
        return super().construct_mapping(node, deep)
