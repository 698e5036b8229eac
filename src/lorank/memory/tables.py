"""An inspection as tables for the terminal."""

from lorank.memory.adapter_bytes import FP32
from lorank.memory.inspection import Inspection
from lorank.memory.untouched import ADAPTED, ADAPTED_EXPERTS
from lorank.report.split_table import SplitTable


def in_words(size: float) -> str:
    """Bytes in a unit in which they are short.

    Example:
        >>> in_words(512), in_words(3 * 2**20), in_words(141.1 * 10**9)
        ('512 B', '3.0 MiB', '131.4 GiB')

    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"


def base_table(found: Inspection) -> SplitTable:
    """Bytes of the base in each dtype; the one that is asked for is marked.

    Beside quantised layers embeddings and norms keep a dtype, which is said: in fp32 they can be most of it.
    """
    quantized = found.question.quantization
    chosen = quantized or found.dtype
    asked = f"as asked, the rest in {found.dtype}" if quantized else "as asked"
    table = SplitTable("base model", ("dtype", "bytes", "size", ""))
    for name, size in found.base.items():
        table.add_row(name, f"{size:,}", in_words(size), asked if name == chosen else "")
    return table


def memory_table(found: Inspection) -> SplitTable:
    """What a device holds."""
    trained, held, question = found.trained, found.activations, found.question
    start = trained.initial_parameters
    rows = [
        ("base model", found.base_of_device),
        ("adapter at its start", FP32 * start),
        ("adapter at its end", FP32 * trained.final_parameters),
        ("copies of heads and modules that train whole", trained.head_bytes),
        ("gradients", trained.trained_bytes(start)),
        (f"optimizer state ({question.optimizer})", trained.optimizer_bytes(start, question.optimizer)),
        ("score state", found.state.kept),
        ("a scored batch, for a moment", found.state.moment),
        ("activations", held.peak(checkpointing=question.gradient_checkpointing)),
        ("- of these, logits", held.logits),
        ("- with gradient checkpointing", held.peak(checkpointing=True)),
        ("- without", held.peak(checkpointing=False)),
        ("peak of loading, before the base is sharded", found.loading_peak),
        ("peak of training", found.training_peak),
        ("peak of scoring before training", found.scoring_peak),
        ("peak of plain LoRA", found.plain_peak),
    ]
    title = f"memory of each of {question.gpus} devices" if question.gpus > 1 else "memory of the device"
    table = SplitTable(title, ("", "bytes", "size"))
    for name, size in rows:
        if size:
            table.add_row(name, f"{size:,}", in_words(size))
    return table


def parameter_table(found: Inspection) -> SplitTable:
    """Where the parameters are, and which kinds have no adapter."""
    total = sum(found.parameters.values())
    table = SplitTable("parameters", ("kind", "parameters", "share", "adapter"))
    for kind, number in found.parameters.items():
        table.add_row(
            kind, f"{number:,}", f"{100 * number / total:.2f}%", "yes" if kind in (ADAPTED, ADAPTED_EXPERTS) else "none"
        )
    return table


def pass_lines(found: Inspection) -> list[str]:
    """Passes and overhead, a sentence each; the notes."""
    passes, question = found.passes, found.question
    least = "" if passes.exact else "at least "
    saved = "with" if question.gradient_checkpointing else "without"
    lines = [
        f"asked: batches of {question.batch} x {question.seq:,} tokens, {question.steps:,} steps, {question.optimizer}, {saved} "
        "gradient checkpointing (--batch, --seq, --steps, --optimizer, --gradient-checkpointing)"
    ]
    if passes.search_steps:
        lines.append(f"search: {passes.search_steps:,} optimizer steps before the {question.steps:,} of training")
    lines.append(
        f"passes beside those of training: {least}{passes.scoring:,} forward and backward, {passes.forward_only:,} forward only"
        + (f", {passes.further_backward:,} further backward" if passes.further_backward else "")
        + f" ({passes.scored_batches:,} scored batches of {question.scored_at_once})"
    )
    more = found.peak - found.plain_peak
    lines.append(
        f"over plain LoRA of the same budget: {passes.overhead(question):.1f}% more passes, "
        f"{100 * more / found.plain_peak:+.1f}% peak memory"
    )
    if found.quantised is not None:
        kept = found.quantised.kept
        lines.append(
            f"{len(found.quantised.layers)} linear layers are quantised, {len(kept)} are not"
            + (f" ({', '.join(kept[:3])}{', ...' if kept[3:] else ''})" if kept else "")
            + f"; {in_words(found.quantised.overhead)} are scales of the packed weights"
        )
    lines.append(f"peak of a device: {in_words(found.peak)} and what the driver and the allocator take")
    return [*lines, *(f"note: {note}" for note in found.notes)]
