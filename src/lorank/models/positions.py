"""How long an input a model takes."""

from torch import nn

# As models name their tables of positions: BERT, GPT-2, BART and OPT, OpenAI's GPT.
_POSITIONS = ("position_embeddings", "wpe", "embed_positions", "positions_embed")


def longest_input(model: nn.Module) -> int | None:
    """How many tokens the tables of positions in a model allow; None where positions are relative or computed."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(_POSITIONS):
            # RoBERTa and MPNet count positions from behind the padding index, BART and OPT from an offset.
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - getattr(module, "offset", before)
    # GPT-J and CodeGen have a table that is no weight.
    return next((len(table) for name, table in model.named_buffers() if name.endswith(_POSITIONS)), None)
