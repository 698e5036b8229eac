"""Worlds with a known answer: a frozen base, and a teacher that differs from it by planted low-rank changes in a few modules.

The teacher is the base plus `s_m U_m V_m` of rank r_m in module m. Rows of V are drawn in the module's whitened input space (its
largest principal components), so each planted unit moves variance that there is; s_m is such that module m alone changes the
outputs by `strength * r_m` of their variance: each planted unit matters equally. Students see the teacher's outputs as vectors
(`problem_type="regression"`: the stock loss is the mean of squared errors); the head is the same for both and frozen. Outputs
are whitened, so that each direction counts, and scaled so that the loss of the base is 1. The budget is what was planted.

The base `small` is made from nothing: a BERT of 3 layers x 64 that learned, from a random start, fixed functions of three
neighbouring tokens of a random Markov chain. `minilm` and `smollm2` are real weights and read windows of real news.
"""

import copy
import csv
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from lorank.targets import find_targets

DOWNLOADS = Path("downloads")
OUTPUTS, LENGTH, WORDS = 32, 12, 512
DESIGNS = ("random", "one-type", "mlp", "attention", "raw", "homogeneous")
# The last parts of names, by projection.
PROJECTIONS = {
    "query": "q", "key": "k", "value": "v", "attention.output.dense": "o", "intermediate.dense": "up", "output.dense": "down",
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
}  # fmt: skip
FEED_FORWARD = ("up", "down", "gate")


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


@dataclass(frozen=True)
class World:
    """A base, a teacher's answers, and the ranks that made the difference.

    Attributes:
        base: a classifier whose outputs are numbers; frozen but for what students add.
        head: name of its head.
        train: of the teacher.
        test: of the teacher.
        planted: module -> rank.
        costs: module -> parameters of one unit of rank.
        alone: module -> share of the variance of the outputs that its change makes alone.

    """

    base: nn.Module
    head: str
    train: Examples
    test: Examples
    planted: Mapping[str, int]
    costs: Mapping[str, int]
    alone: Mapping[str, float] = field(default_factory=dict)

    @property
    def budget(self) -> int:
        """Parameters that were planted."""
        return sum(rank * self.costs[name] for name, rank in self.planted.items())


def projection(name: str) -> str:
    """`bert.encoder.layer.2.output.dense` -> `down`."""
    return next(short for last, short in PROJECTIONS.items() if name.endswith(last))


def layer(name: str) -> int:
    """The number in a module's name."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def short(name: str) -> str:
    """`bert.encoder.layer.2.output.dense` -> `2.down`."""
    return f"{layer(name)}.{projection(name)}"


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

    def __init__(self, *, small_steps: int = 500, train: int = 4096, test: int = 1024, device: str = "cpu") -> None:
        self.sizes, self.small_steps, self.device = {"train": train, "test": test}, small_steps, device
        self._made: dict[str, tuple[nn.Module, dict[str, torch.Tensor]]] = {}

    def of(self, kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        """A copy of the base with a whitened head of `OUTPUTS` outputs, and its texts."""
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        base, ids = self._made[kind]
        return copy.deepcopy(base), ids

    def _make(self, kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        if kind == "small":
            model = small_base(self.small_steps)
            ids = {part: markov_ids(count, 2 + k) for k, (part, count) in enumerate(self.sizes.items())}
            head = nn.Linear(64, OUTPUTS)
            model.set_submodule("classifier", head)
            model.num_labels = OUTPUTS  # type: ignore[assignment]
            model.config.num_labels = OUTPUTS  # type: ignore[union-attr]
        else:
            folder = DOWNLOADS / kind
            tokenizer = AutoTokenizer.from_pretrained(folder)
            ids = {part: news_ids(part, 16, tokenizer)[:count] for part, count in self.sizes.items()}
            torch.manual_seed(0)
            no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if kind == "minilm" else {}
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=OUTPUTS, problem_type="regression", dtype=torch.float32, **no_dropout
            )
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


def planted_ranks(design: str, names: Sequence[str], seed: int) -> dict[str, int]:
    """Ranks of a design, a function of its seed.

    random, raw: 16, 12, 8, 4 in four modules; one-type: 10 in one projection of half of the layers; mlp, attention: 4 in every
    module of that kind; homogeneous: 2 in every module, the negative control. In `raw` planted rows are not whitened.
    """
    source = random.Random(f"{design}/{seed}")
    layers = sorted({layer(name) for name in names})
    if design == "one-type":
        kind = ("v", "down", "q", "o", "up", "k")[seed % 6]
        chosen = source.sample(layers, max(2, len(layers) // 2))
        return {name: 10 if projection(name) == kind and layer(name) in chosen else 0 for name in names}
    if design in ("random", "raw"):
        drawn = dict(zip(source.sample(sorted(names), 4), (16, 12, 8, 4), strict=True))
        return {name: drawn.get(name, 0) for name in names}
    if design == "homogeneous":
        return dict.fromkeys(names, 2)
    wanted = {"mlp": True, "attention": False}[design]
    return {name: 4 if (projection(name) in FEED_FORWARD) is wanted else 0 for name in names}


def make_world(bases: Bases, kind: str, design: str, seed: int, strength: float = 0.03) -> World:
    """A world; the same for the same kind, design and seed."""
    base, ids = bases.of(kind)
    targets = find_targets(base)
    ranks = planted_ranks(design, [target.name for target in targets], seed)
    teacher, alone = plant(base, ids["train"], ranks, seed, strength, whitened=design != "raw")
    labels = {part: outputs(teacher, one) for part, one in ids.items()}
    scale = float((labels["test"] - outputs(base, ids["test"])).square().mean().sqrt())
    head = base.get_submodule(head_of(base))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.div_(scale)
    data = {part: Examples(ids[part], labels[part] / scale) for part in ids}
    costs = {target.name: target.unit_cost for target in targets}
    return World(base, head_of(base), data["train"], data["test"], ranks, costs, alone)


@torch.no_grad()
def outputs(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """`(n, outputs)`."""
    return torch.cat([model(input_ids=part).logits for part in ids.split(256)])


@torch.no_grad()
def plant(
    base: nn.Module, ids: torch.Tensor, ranks: Mapping[str, int], seed: int, strength: float, *, whitened: bool = True
) -> tuple[nn.Module, dict[str, float]]:
    """The teacher, and the share of the variance of the outputs that each planted module changes alone."""
    teacher, looked_at, components = copy.deepcopy(base), ids[:256], 32
    draw = torch.Generator().manual_seed(1000 + seed)
    names = [name for name, rank in ranks.items() if rank]
    moments = input_covariances(base, names, ids[:512])
    start = outputs(base, looked_at)
    variance, changes, alone = start.var(0).sum(), dict[str, torch.Tensor](), dict[str, float]()
    for name in names:
        module, rank = linear(teacher, name), ranks[name]
        d_out, d_in = module.weight.shape
        u = torch.linalg.qr(torch.randn(d_out, rank, generator=draw))[0]
        if whitened:
            values, vectors = torch.linalg.eigh(moments[name])
            top = min(components, d_in)
            mixed = torch.linalg.qr(torch.randn(top, rank, generator=draw))[0].T
            v = (mixed / values[-top:].clamp_min(1e-6).sqrt()) @ vectors[:, -top:].T
        else:
            v = torch.randn(rank, d_in, generator=draw)
        change, weight = (u @ v).to(module.weight), module.weight.clone()

        def effect(
            size: float, module: Any = module, change: torch.Tensor = change, weight: torch.Tensor = weight
        ) -> float:
            module.weight.copy_(weight + size * change)
            moved = (outputs(teacher, looked_at) - start).square().sum(1).mean() / variance
            module.weight.copy_(weight)
            return float(moved)

        low, high = 0.0, 1.0
        while effect(high) < strength * rank and high < 64:
            high *= 2
        for _ in range(16):
            middle = (low + high) / 2
            low, high = (middle, high) if effect(middle) < strength * rank else (low, middle)
        changes[name], alone[name] = high * change, effect(high)
    for name, change in changes.items():
        linear(teacher, name).weight.add_(change)
    return teacher, alone


def input_covariances(model: nn.Module, names: Sequence[str], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Covariance of each module's inputs over tokens, `(d_in, d_in)` on the CPU."""
    held: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: held.__setitem__(name, args[0].flatten(0, 1))
        )
        for name in names
    ]
    model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return {name: torch.cov(seen.T).cpu() for name, seen in held.items()}
