"""Time and memory of the worst files, in a process of its own: five seconds, and 500 MB beyond the imports."""

import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import resource, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from lorank.errors import LorankError
from lorank.models.loading import load_without_weights
from lorank.plan import RankPlan
from lorank.recipe.files import load_recipe
from lorank.starter.first_rows import read_source
read = {".yaml": load_recipe, ".plan": RankPlan.load, "": load_without_weights}
for path in map(Path, sys.argv[1:]):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        read.get(path.suffix, lambda given: read_source(given, None, None))(str(path))
    except LorankError as error:
        assert len(str(error)) < 3000
    took, more = time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{took:.1f} {more:.0f} {path.name}")
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_the_worst_files_take_seconds_and_little_memory(tmp_path: Path) -> None:
    files = {
        "quote.csv": 'text,label\n"' + "a,b\n" * 12_500_000,
        "columns.csv": ",".join(f"c{number}" for number in range(100_000)) + "\n" + ",".join("1" * 100_000),
        "keys.json": "{" + ",".join(f'"k{number % 99_999}":1' for number in range(100_000)) + "}",
        "deep.json": "[" * 10_000_000,
        "commas.json": "[" + "{}," * 200_000,
        "deep.yaml": "[" * 100_000,
        "aliases.yaml": "a0: &a0 [x]\n" + "".join(f"a{k + 1}: &a{k + 1} [{f'*a{k},' * 9}]\n" for k in range(30)),
        "deep.plan": '{"a":' * 1_000_000,
        "labels": '{"model_type": "bert", "num_labels": 1000000000000}',
        "layers": '{"model_type": "bert", "num_hidden_layers": 100000}',
        "words": '{"model_type": "bert", "vocab_size": 900000000, "hidden_size": 12}',
    }
    paths = []
    for name, content in files.items():
        path = tmp_path / name if "." in name else tmp_path / name / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        paths.append(str(tmp_path / name))
    done = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [line.split() for line in done.stdout.splitlines()]
    assert [name for *_, name in found] == [Path(path).name for path in paths]
    assert not [line for line in found if float(line[0]) > 5 or float(line[1]) > 500]
