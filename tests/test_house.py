"""How the package is laid out: which room imports from which, how large files and folders are, who reads a module's name.

`src/lorank` is read as text (`ast`), so that imports inside of functions and under TYPE_CHECKING count like all others, and so
do modules that are loaded by a string with their name.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "lorank"
GROUND = (
    "errors", "untrusted", "validation", "findings", "processes", "artefact", "console", "received_files", "interrupt",
    "module_names", "model_parts", "unsuitable", "experts", "targets", "lora_options", "budget", "scores", "plan",
)  # fmt: skip
# A room imports from the rooms before it. `lorank` itself and every `__main__` stand above all.
ROOMS = (
    "models", "tasks", "allocation", "adapter", "report", "scoring", "serving", "engine", "methods", "pruning",
    "in_training", "recipe", "memory", "training", "page", "runs", "starter", "evaluation", "compare", "headroom", "suggest",
    "doctor", "cli",
)  # fmt: skip
FLOORS = dict.fromkeys(GROUND, 0) | {room: floor for floor, room in enumerate(ROOMS, 1)}
TOP = len(ROOMS) + 1
# plan.plot() draws itself: imported when it is called, and nothing else goes up.
UPWARDS = {("lorank.plan", "lorank.report.picture"), ("lorank.plan", "lorank.report.rank_map")}
MAY_TAKE_A_RECIPE = {"recipe", "runs", "evaluation", "compare", "headroom", "suggest", "cli"}


@cache
def modules() -> dict[str, Path]:
    """Full name of each module -> its file; a package is its `__init__`."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


@cache
def imports_of(name: str) -> dict[str, int]:
    """What a module imports, its own package's modules by their full names -> line number."""
    found: dict[str, int] = {}
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            for each in node.names:
                found.setdefault(each.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: a relative import; write the full name"
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                found.setdefault(inner if inner in modules() else str(node.module), node.lineno)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = node.value.partition(":")[0]  # "lorank.x" or "lorank.x:name", to be loaded when it is needed
            if named != "lorank" and named in modules():
                found.setdefault(named, node.lineno)
    return found


def room_of(name: str) -> str:
    """The first part below `lorank`; empty for `lorank` itself."""
    return name.removeprefix("lorank").lstrip(".").split(".")[0]


def floor_of(name: str) -> int:
    return TOP if name == "lorank" or name.endswith(".__main__") else FLOORS[room_of(name)]


def own(names: dict[str, int]) -> dict[str, int]:
    return {name: line for name, line in names.items() if name in modules()}


def where(name: str, line: int) -> str:
    return f"{modules()[name].relative_to(ROOT)}:{line}"


def test_every_module_has_a_floor() -> None:
    unknown = {room_of(name) for name in modules()} - set(FLOORS) - {"", "__main__"}
    assert not unknown, "rooms without a floor: add them to ROOMS or GROUND"


def test_rooms_import_from_floors_below() -> None:
    wrong = [
        f"{where(name, line)} imports {other}"
        for name in modules()
        for other, line in own(imports_of(name)).items()
        if (name, other) not in UPWARDS
        and floor_of(other) >= floor_of(name)
        and not (floor_of(other) == floor_of(name) and same_room(name, other))
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def same_room(name: str, other: str) -> bool:
    return floor_of(name) in (0, TOP) or room_of(name) == room_of(other)


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert not (circle := first_circle()), " -> ".join(circle)


def first_circle() -> list[str]:
    """Modules each of which imports the next, the last one the first again; empty if there is none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in own(imports_of(name)):
            if other != name and (name, other) not in UPWARDS and (circle := walk(other, [*way, name])):
                return circle
        done.add(name)
        return []

    return next((circle for name in modules() if (circle := walk(name, []))), [])


def test_no_file_is_over_300_lines() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values()
    }
    assert not {name: length for name, length in lengths.items() if length > 300}


def test_no_folder_has_over_20_files() -> None:
    folders = [path.parent for path in modules().values()]
    assert not {str(folder.relative_to(ROOT)): n for folder in set(folders) if (n := folders.count(folder)) > 20}


def test_below_whole_runs_nothing_takes_a_recipe() -> None:
    wrong = []
    for name in modules():
        if room_of(name) in {*MAY_TAKE_A_RECIPE, ""}:
            continue
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.ImportFrom) and any(each.name == "Recipe" for each in node.names):
                wrong.append(f"{where(name, node.lineno)} imports Recipe")
            elif isinstance(node, ast.arg) and (node.arg == "recipe" or names_recipe(node.annotation)):
                wrong.append(f"{where(name, node.lineno)} has the parameter {node.arg}")
            elif isinstance(node, ast.AnnAssign) and names_recipe(node.annotation):
                wrong.append(f"{where(name, node.lineno)} has the field {ast.unparse(node.target)}")
    assert not wrong, "\n" + "\n".join(wrong)


def names_recipe(annotation: ast.expr | None) -> bool:
    return annotation is not None and re.search(r"\bRecipe\b", ast.unparse(annotation)) is not None


# Files that take something else apart at its dots.
NO_MODULE_NAMES = {
    "untrusted/expressions.py": "reads expressions, and no names",
    "validation.py": "keys of recipes",
    "recipe/files.py": "keys of recipes",
    "recipe/format1.py": "keys of recipes",
    "recipe/method_sections.py": "keys of recipes",
    "tasks/labels.py": "decimal numbers",
    "unsuitable.py": "the Python module of a class",
    "in_training/trainer_snapshot.py": "the Python module of a class",
    "runs/output.py": "hidden files",
    "report/split_table.py": "line breaks in a heading",
    "lora_options.py": "writes a pattern for a full name, and reads none",
}


def test_only_module_names_and_serving_take_a_modules_name_apart() -> None:
    wrong, needed = [], set()
    for name, path in modules().items():
        file = path.relative_to(ROOT).as_posix()
        if file in ("module_names.py", "targets.py") or room_of(name) == "serving":
            continue
        for node in ast.walk(tree_of(name)):
            if takes_apart(node):
                needed.add(file)
                if file not in NO_MODULE_NAMES:
                    wrong.append(f"{where(name, node.lineno)} {ast.unparse(node)}")
    assert not wrong, "use or add a function of lorank.module_names:\n" + "\n".join(wrong)
    assert not set(NO_MODULE_NAMES) - needed, "files that need no exception any more"


def takes_apart(node: ast.AST) -> bool:
    """Whether an expression looks for dots in a string, as far as that can be seen in the source."""
    match node:
        case ast.Call(func=ast.Attribute(attr="split" | "rsplit" | "partition" | "rpartition"), args=[part, *_]):
            return dotted(part)
        case ast.Call(
            func=ast.Attribute(
                attr="startswith"
                | "endswith"
                | "removeprefix"
                | "removesuffix"
                | "replace"
                | "count"
                | "find"
                | "index"
            ),
            args=[part, *_],
        ):
            return dotted(part)
        case ast.Call(
            func=ast.Attribute(
                value=ast.Name(id="re"), attr="compile" | "match" | "search" | "fullmatch" | "sub" | "split" | "findall"
            ),
            args=[pattern, *_],
        ):
            return r"\." in ast.unparse(pattern).replace("\\\\", "\\") and not is_number(pattern)
        case ast.Compare(left=part, ops=[ast.In() | ast.NotIn()]):
            return dotted(part)
    return False


def dotted(part: ast.expr) -> bool:
    """A string that begins or ends with a dot, an f-string that does, or a tuple with one of these; not `torch.float32`'s."""
    match part:
        case ast.Constant(value="torch."):
            return False
        case ast.Constant(value=str(text)):
            return text.startswith(".") or text.endswith(".")
        case ast.JoinedStr(values=[first, *_] as values):
            return dotted(first) or dotted(values[-1])
        case ast.Tuple(elts=elements):
            return any(dotted(element) for element in elements)
    return False


def is_number(pattern: ast.expr) -> bool:
    """A pattern of decimal numbers: its dot stands between or before digits."""
    return "[0-9]" in ast.unparse(pattern)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("name.split('.')", True),
        ("name.rpartition('.')[2]", True),
        ("name.endswith(f'.{end}')", True),
        ("name.startswith(('model.', 'x'))", True),
        ("'.lora_' in key", True),
        (r"re.search(r'\.\d+\.', name)", True),
        ("text.split(',')", False),
        ("name.endswith('.')", True),
        (r"re.compile(r'[0-9]+(\.[0-9]+)?')", False),
        ("f'{parent}.{leaf}'", False),
    ],
)
def test_taking_names_apart_is_seen(source: str, found: bool) -> None:
    assert any(takes_apart(node) for node in ast.walk(ast.parse(source))) is found


def loaded_by(module: str) -> set[str]:
    """Our modules that are there after a module was imported in a fresh process."""
    code = f"import sys, {module}; print(*[name for name in sys.modules if name.split('.')[0] == 'lorank'])"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def reached_from(module: str) -> set[str]:
    """Our modules that a module imports, and those import, inside of functions too; the packages that they are in."""
    found, waiting = {"lorank"}, [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [name.rpartition(".")[0], *own(imports_of(name))]
    return found


def test_the_callback_needs_no_recipe_no_yaml_and_no_file_locks() -> None:
    callback = "lorank.in_training.rank_allocation"
    loaded, reached = loaded_by(callback), reached_from(callback)
    assert callback in loaded <= reached
    wrong = [name for name in reached if room_of(name) in ("recipe", "training", "runs", "compare", "cli")]
    # transformers loads yaml and filelock in any case, so it is our own imports that are looked at.
    wrong += [
        f"{name} imports {other}"
        for name in reached - {"lorank"}
        for other in imports_of(name)
        if other.split(".")[0] in ("yaml", "filelock")
    ]
    assert not wrong
