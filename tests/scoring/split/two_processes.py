"""What each of two processes does in `test_several_processes.py`: scores together what one process has scored into FOLDER."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from tests.scoring.calibration_cases import batches_of, collate, example, make
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

import lorank
from lorank.engine.scoring_batches import LoaderBatches
from lorank.errors import DataError, LorankError, ScoresError, TargetError
from lorank.scores import ImportanceScores
from lorank.scoring.split.collectives import gathered
from lorank.scoring.split.numbered_batches import NumberedBatches

Scores = Callable[[], ImportanceScores]
COUNT, SIZE = 27, 5  # 6 batches, the last of 2; a fold's examples go to both processes
ROWS = [example("decoder", number) for number in range(COUNT)]
HELD_OUT = [collate("decoder", [example("decoder", 100 + 4 * k + n) for n in range(4)]) for k in range(3)]
PROBE = {"method": "probe", "steps": 6, "learning_rate": 2e-2, "initial_rank": 2}


def together(rows: list[Any]) -> Any:
    return collate("decoder", rows)


def loader(**options: Any) -> Any:
    return DataLoader(ROWS, **{"batch_size": SIZE, "collate_fn": together, **options})  # type: ignore[arg-type]


class Stream(IterableDataset[Any]):
    """Examples without numbers."""

    def __iter__(self) -> Iterator[Any]:
        yield from ROWS


def scored(kind: str = "decoder", batches: Any = None, **options: Any) -> ImportanceScores:
    return lorank.score(make(kind), batches_of(kind, COUNT, SIZE) if batches is None else batches, **options)


CASES: dict[str, Scores] = {
    "decoder gram": lambda: scored(),
    "decoder fisher": lambda: scored(estimator="fisher"),
    "encoder fisher": lambda: scored("encoder", estimator="fisher"),
    "encoder kfac": lambda: scored("encoder", estimator="kfac"),
    "decoder hutchinson": lambda: scored(estimator="hutchinson", probes=2),
    "encoder-decoder gram": lambda: scored("encoder-decoder"),
    "gradient": lambda: scored(method="gradient"),
    "magnitude": lambda: scored(method="magnitude"),
    "one batch": lambda: scored(batches=batches_of("decoder", SIZE, SIZE), estimator="fisher"),
    "eva": lambda: scored(method="eva", components=4),
    "probe": lambda: scored(batches=loader(shuffle=True), scoring_data=HELD_OUT, seed=3, **PROBE),
}


def check_equal(name: str, one: ImportanceScores, two: ImportanceScores) -> None:
    """To 1e-9 relative, standard errors and resamples too, and the same plan."""
    pairs = [("scores", one.scores, two.scores)]
    pairs += [("standard errors", one.standard_errors or {}, two.standard_errors or {})]
    pairs += [(kind, values, (two.resamples or {})[kind]) for kind, values in (one.resamples or {}).items()]
    for what, expected, found in pairs:
        assert list(expected) == list(found), (name, what)
        for module, values in expected.items():
            np.testing.assert_allclose(found[module], values, rtol=1e-9, atol=1e-15, err_msg=f"{name} {what} {module}")
    kept = ("examples", "batches", "counted_targets", "left_out", "one_example_at_a_time", "loss_reduction")
    for key in kept:
        assert one.provenance.get(key) == two.provenance.get(key), (name, key)
    traces = [[list(each.values()) for each in s.provenance.get("traces", {}).values()] for s in (one, two)]
    np.testing.assert_allclose(traces[1], traces[0], rtol=1e-5, err_msg=name)
    assert lorank.allocate(one, "r=2", max_rank=8).ranks == lorank.allocate(two, "r=2", max_rank=8).ranks, name
    assert len(set(gathered(two.fingerprint))) == 1, name


def refused(error: type[Exception], said: str, score: Callable[[], Any]) -> None:
    """All processes raise, and none waits for another."""
    try:
        score()
    except LorankError as found:
        message = f"{type(found).__name__}: {found}"
    else:
        message = "nothing was raised"
    for number, each in enumerate(gathered(message)):
        assert each.startswith(error.__name__), (number, each)
        assert said in each, (number, each)


def check_loaders(whole: ImportanceScores) -> None:
    """Loaders that give each process a part, and those that shuffle."""
    for options in ({}, {"split_batches": True}, {"dispatch_batches": True}, {"even_batches": False}):
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
        size = 4 if options.get("split_batches") else SIZE
        for given in (loader(batch_size=size), DataLoader(Stream(), batch_size=size, collate_fn=together)):
            prepared = accelerator.prepare(given)
            check_equal(str(options), whole, without_batches(scored(batches=prepared, estimator="fisher")))
            assert not prepared.end_of_dataloader
        batches = LoaderBatches(accelerator.prepare(loader(batch_size=4)), 0)
        first = batches.batch(0, torch.device("cpu"))
        assert torch.equal(first["input_ids"], together(ROWS[: 2 if options.get("split_batches") else 4])["input_ids"])
    sampler = DistributedSampler(ROWS, shuffle=False)  # type: ignore[arg-type, var-annotated]
    check_equal("DistributedSampler", whole, scored(batches=loader(sampler=sampler), estimator="fisher"))
    sampler = DistributedSampler(ROWS, shuffle=True)  # type: ignore[arg-type]
    for shuffled in (accelerator.prepare(loader(shuffle=True)), loader(shuffle=True), loader(sampler=sampler)):
        torch.manual_seed(distributed.get_rank())
        found = scored(batches=shuffled, estimator="fisher")
        assert found.provenance["examples"] == COUNT
        for name, values in whole.scores.items():
            np.testing.assert_allclose(found.scores[name], values, rtol=1e-9)
    sharded = DataLoader(_datasets_stream().shard(2, distributed.get_rank()), batch_size=SIZE)  # type: ignore[arg-type]
    refused(DataError, "the processes read other calibration batches", lambda: NumberedBatches(sharded))
    prepared = accelerator.prepare(DataLoader(_datasets_stream(), batch_size=SIZE))  # type: ignore[arg-type]
    if type(prepared).__name__ == "DataLoaderShard":
        refused(DataError, "which part cannot be told", lambda: NumberedBatches(prepared))


def without_batches(scores: ImportanceScores) -> ImportanceScores:
    """Batches may be smaller or larger than they were given: of the split ones a part is a batch."""
    scores.provenance["batches"] = 6  # type: ignore[index]
    return scores


def _datasets_stream() -> Any:
    from datasets import Dataset

    return (
        Dataset.from_list([{"number": number} for number in range(8)])
        .to_iterable_dataset(num_shards=2)
        .with_format("torch")
    )


def check_failures() -> None:
    rank = distributed.get_rank()

    def loss(model: nn.Module, batch: Any) -> Any:
        if rank == 1:
            raise RuntimeError("no memory, say")
        return model(**batch).loss * 4, torch.ones(len(batch["input_ids"]))

    refused(ScoresError, "ask for different scores: method is", lambda: scored(method=("magnitude", "gradient")[rank]))
    refused(ScoresError, "ask for different scores: options is", lambda: scored(estimator="fisher", folds=4 + rank))
    mute = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in batches_of("decoder", 8, 4)]
    refused(DataError, "not one label", lambda: scored(batches=mute, estimator="fisher"))
    refused(DataError, "gave no batch", lambda: scored(batches=[]))
    own = batches_of("decoder", 8, 4)[rank : rank + 1]
    refused(DataError, "the processes read other calibration batches", lambda: scored(batches=own))
    later = [*batches_of("decoder", 8, 4), *([] if rank else own)]
    refused(DataError, "the processes read other calibration batches", lambda: scored(batches=later))
    try:
        scored(estimator="fisher", loss=loss)
    except (ScoresError, RuntimeError) as found:
        message = str(found)
    assert message == ("no memory, say" if rank else "process 1 of 2 failed: RuntimeError: no memory, say")
    other = make("encoder")
    with torch.no_grad():
        other.classifier.weight += rank
    refused(ScoresError, "'classifier.weight' differs", lambda: lorank.score(other, batches_of("encoder", 8, 4)))


def check_sharded() -> None:
    """FSDP2: each process passes all batches, and the model works afterwards as before."""
    mesh = init_device_mesh("cpu", (2,))

    def model() -> Any:
        found: Any = make("decoder")
        for layer in found.model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(found, mesh=mesh)

    batches = batches_of("decoder", COUNT, SIZE)
    for method in (
        {"estimator": "gram"},
        {"estimator": "fisher"},
        {"method": "gradient"},
        {"method": "eva", "components": 4},
    ):
        held = model()
        check_equal(f"FSDP2 {method}", expected[str(method)], lorank.score(held, batches, **method))
        loss = held(**batches[0]).loss
        loss.backward()
        assert torch.allclose(loss, make("decoder")(**batches[0]).loss)
        assert held.model.layers[0].mlp.up_proj.weight.grad is not None
    kept = fully_shard(make("decoder"), mesh=mesh)  # as one: it stays gathered after a pass without gradients
    for method in ({"method": "eva", "components": 4}, {"method": "gradient"}):
        check_equal(f"FSDP2, kept, {method}", expected[str(method)], lorank.score(kept, batches, **method))
    check_equal("FSDP2 magnitude", expected["magnitude"], lorank.score(model(), method="magnitude"))
    refused(ScoresError, "second derivatives", lambda: lorank.score(model(), batches, estimator="hutchinson"))
    refused(TargetError, "'probe' trains", lambda: lorank.score(model(), batches, scoring_data=HELD_OUT, **PROBE))


def save_scores(folder: Path) -> None:
    """Of one process."""
    torch.manual_seed(0)
    for name, score in CASES.items():
        score().save(folder / f"{name}.safetensors")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = Path(sys.argv[1])
    if sys.argv[2:] == ["one"]:
        save_scores(folder)
        sys.exit()
    expected = {name: ImportanceScores.load(folder / f"{name}.safetensors") for name in CASES}
    expected |= {
        "{'estimator': 'gram'}": expected["decoder gram"],
        "{'estimator': 'fisher'}": expected["decoder fisher"],
    }
    expected |= {"{'method': 'gradient'}": expected["gradient"]}
    expected["{'method': 'eva', 'components': 4}"] = expected["eva"]
    distributed.init_process_group("gloo")
    for name, score in CASES.items():
        check_equal(name, expected[name], score())
    check_failures()
    if (recipe := folder / "recipe.yaml").is_file():
        check_sharded()
        check_loaders(expected["decoder fisher"])
        from lorank.cli import app

        with contextlib.suppress(SystemExit):  # what it has written is looked at
            app(["score", str(recipe), "--output", str(folder / "two.safetensors")])
    else:
        prepared = Accelerator(cpu=True).prepare(loader())
        check_equal("accelerate", expected["decoder fisher"], scored(batches=prepared, estimator="fisher"))
    distributed.barrier()
    (folder / f"process {distributed.get_rank()} is done").touch()
    distributed.destroy_process_group()
