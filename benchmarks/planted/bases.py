"""Frozen bases of planted worlds: a small one that is made from nothing, and real weights; texts for them.

The base `small` is a BERT of 3 layers x 64 that learned, from a random start, fixed functions of three neighbouring tokens of a
random Markov chain. `minilm` (6 layers x 384) and `smollm2` (the first 6 layers of SmolLM2, 576 wide) are real weights and read
windows of real news.
"""

import copy
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

DOWNLOADS = Path("downloads")
OUTPUTS, LENGTH, WORDS = 32, 12, 512
LAYERS = 6  # of smollm2's 30
SIZES = {
    "small": {"train": 4096, "test": 1024},
    "minilm": {"train": 2048, "test": 512},
    "smollm2": {"train": 2048, "test": 512},
}


class Examples(Dataset):  # type: ignore[type-arg]
    """Token ids `(n, length)` and vectors `(n, outputs)`; hands out whole batches."""

    def __init__(self, ids: torch.Tensor, labels: torch.Tensor) -> None:
        self.ids, self.labels = ids, labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        return self[torch.tensor(indices)]

    def part(self, start: int, stop: int | None = None) -> "Examples":
        """Some of them."""
        return Examples(self.ids[start:stop], self.labels[start:stop])

    def on(self, device: str) -> "Examples":
        """All of them, on a device."""
        return Examples(self.ids.to(device), self.labels.to(device))

    def batches(self, size: int) -> list[dict[str, torch.Tensor]]:
        """In order."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def shuffled(self, size: int, steps: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        """`steps` batches of random epochs; a function of the seed."""
        generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
        for _ in range(steps):
            if len(order) < size:
                order = torch.randperm(len(self), generator=generator)
            yield self[order[:size]]
            order = order[size:]


def markov_ids(count: int, seed: int) -> torch.Tensor:
    """Texts `(count, LENGTH)` of a Markov chain in which each of `WORDS` tokens has 8 usual successors; token 0 is first."""
    fixed = torch.Generator().manual_seed(0)
    successors = torch.randint(1, WORDS, (WORDS, 8), generator=fixed)
    draw = torch.Generator().manual_seed(seed)
    ids = torch.zeros(count, LENGTH, dtype=torch.long)
    for place in range(1, LENGTH):
        usual = successors[ids[:, place - 1], torch.randint(8, (count,), generator=draw)]
        other = torch.randint(1, WORDS, (count,), generator=draw)
        ids[:, place] = torch.where(torch.rand(count, generator=draw) < 0.8, usual, other)
    return ids


def text_vectors(ids: torch.Tensor, outputs: int = 64) -> torch.Tensor:
    """What the small base learns: `mean_i tanh(A e_i + B e_(i+1) + C e_(i+2))` of random embeddings e, standardised."""
    draw = torch.Generator().manual_seed(1)
    embedded = torch.randn(WORDS, 24, generator=draw)[ids]
    maps = torch.randn(3, 24, outputs, generator=draw) * 24**-0.5 * 1.5
    near = sum(embedded[:, k : LENGTH - 2 + k] @ maps[k] for k in range(3))
    found = torch.tanh(torch.as_tensor(near)).mean(1)
    return (found - found.mean(0)) / found.std(0)


def small_base(steps: int = 500) -> nn.Module:
    """A BERT of 3 layers x 64 from a random start; the same each time on one machine."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=LENGTH, initializer_range=0.06, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        num_labels=64, problem_type="regression",
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    ids = markov_ids(8192, 1)
    data = Examples(ids, text_vectors(ids))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 40) * max(0.0, 1 - s / steps))
    for batch in data.shuffled(32, steps, 0):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model


def news_ids(part: str, length: int, tokenizer: Any) -> torch.Tensor:
    """Windows of R8's texts, `(n, length)`, without padding, in a seeded order."""
    with (DOWNLOADS / f"reuters-r8/{part}.tsv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    first = [tokenizer.cls_token_id] if tokenizer.cls_token_id is not None else []
    width, found = length - len(first), list[list[int]]()
    for _, text in rows:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"][: 4 * width]
        found += [[*first, *tokens[at : at + width]] for at in range(0, len(tokens) - width + 1, width)]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return torch.tensor(found)[order]


class Bases:
    """Bases by kind, each made or read once, with texts for it."""

    def __init__(
        self, *, small_steps: int = 500, train: int | None = None, test: int | None = None, device: str = "cpu"
    ) -> None:
        self.sizes, self.small_steps, self.device = {"train": train, "test": test}, small_steps, device
        self._made: dict[str, tuple[nn.Module, dict[str, torch.Tensor]]] = {}

    def of(self, kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        """A copy of the base with a whitened head of `OUTPUTS` outputs, and its texts."""
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        base, ids = self._made[kind]
        return copy.deepcopy(base), ids

    def _make(self, kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        sizes = {part: self.sizes[part] or SIZES[kind][part] for part in ("train", "test")}
        if kind == "small":
            model = small_base(self.small_steps)
            ids = {part: markov_ids(count, 2 + k) for k, (part, count) in enumerate(sizes.items())}
            head = nn.Linear(64, OUTPUTS)
            model.set_submodule("classifier", head)
            model.num_labels = OUTPUTS  # type: ignore[assignment]
            model.config.num_labels = OUTPUTS  # type: ignore[union-attr]
        else:
            folder = DOWNLOADS / kind
            tokenizer = AutoTokenizer.from_pretrained(folder)
            ids = {part: news_ids(part, 16, tokenizer)[:count] for part, count in sizes.items()}
            torch.manual_seed(0)
            no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if kind == "minilm" else {}
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=OUTPUTS, problem_type="regression", dtype=torch.float32, **no_dropout
            )
            if kind == "smollm2":
                model.model.layers = model.model.layers[:LAYERS]
                model.config.num_hidden_layers = LAYERS
            model.config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
            if kind == "minilm":  # it was trained for the mean of tokens, and its pooler is not trained
                nn.init.orthogonal_(model.bert.pooler.dense.weight)
                nn.init.zeros_(model.bert.pooler.dense.bias)
        ids = {part: one.to(self.device) for part, one in ids.items()}
        model.eval().to(self.device)
        whiten_head(model, ids["train"][:1024])
        return model, ids


def linear(model: nn.Module, name: str) -> nn.Linear:
    """A linear layer by its name."""
    found = model.get_submodule(name)
    assert isinstance(found, nn.Linear), f"{name} is {type(found).__name__}"
    return found


def head_of(model: nn.Module) -> str:
    """Name of the linear head."""
    return "classifier" if hasattr(model, "classifier") else "score"


@torch.no_grad()
def whiten_head(model: nn.Module, ids: torch.Tensor) -> None:
    """Make the outputs the largest principal components of what the head sees, each of variance 1."""
    head = linear(model, head_of(model))
    seen = list[torch.Tensor]()
    hook = head.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    for part in ids.split(128):
        model(input_ids=part)
    hook.remove()
    # A decoder's head sees every token, and the last is what counts.
    pooled = torch.cat([one[:, -1] if one.ndim == 3 else one for one in seen]).double().cpu()
    values, vectors = torch.linalg.eigh(torch.cov(pooled.T))
    weight = vectors[:, -OUTPUTS:].T / values[-OUTPUTS:, None].clamp_min(1e-8).sqrt()
    head.weight.copy_(weight)
    if head.bias is not None:
        head.bias.copy_(-weight @ pooled.mean(0))
