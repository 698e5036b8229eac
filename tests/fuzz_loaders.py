"""Every loader of files under atheris, which looks for mutations that reach lines of lorank that none before reached.

usage: python -m tests.fuzz_loaders [-runs=3000] [-max_total_time=600] [LOADER ...]

The flags are libFuzzer's, and hold for each loader; without names, all of `tests.hostile_loaders`. A loader runs in a process of
its own: the first mutation that ends in something else than an error of the family ends it, with its traceback.
"""

import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def fuzz(name: str, flags: list[str], folder: Path) -> None:
    """Mutate until a flag says that it is enough. Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["lorank"], enable_loader_override=False):
        from hypothesis import given, settings
        from hypothesis import strategies as st

        from tests.conftest import make_tiny_folder
        from tests.test_hostile_files import check, make_world

    world = make_world(folder, make_tiny_folder(folder))

    @settings(database=None, deadline=None)
    @given(data=st.data())
    def mutate(data: st.DataObject) -> None:
        check(name, world, data)

    # Bytes stand for what Hypothesis draws. Too few of them are no mutation, so it does not begin with none.
    corpus, draw = folder / "corpus", random.Random(0)
    corpus.mkdir()
    for number in range(50):
        (corpus / str(number)).write_bytes(draw.randbytes(2000))
    one_input = mutate.hypothesis.fuzz_one_input  # type: ignore[attr-defined]
    atheris.Setup([sys.argv[0], "-len_control=0", "-max_len=4096", *flags, str(corpus)], one_input)
    atheris.Fuzz()


def main() -> int:
    flags = [one for one in sys.argv[1:] if one.startswith("-")]
    names = [one for one in sys.argv[1:] if not one.startswith("-")]
    if flags[:1] == ["-one"]:
        fuzz(names[0], flags[1:], Path(names[1]))
    from tests.hostile_loaders import LOADERS

    if unknown := [name for name in names if name not in LOADERS]:
        sys.exit(f"no loader is called {unknown[0]!r}; there are: {', '.join(LOADERS)}")
    failed = []
    for name in names or LOADERS:
        folder = tempfile.mkdtemp()
        command = [sys.executable, "-m", "tests.fuzz_loaders", "-one", *flags, name, folder]
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        shutil.rmtree(folder)
        last = [line for line in ended.stdout.splitlines() if "cov:" in line][-1:]
        result = "mutations are read or refused" if ended.returncode == 0 else "FAILED"
        print(f"{name}: {result}; {' '.join(last)}", flush=True)
        if ended.returncode:
            failed.append(name)
            print(ended.stdout[-5000:], flush=True)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
