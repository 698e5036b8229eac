"""I-LoRA: path-averaged gradients on a held-out scoring set, one cut, then training from a fresh start."""

from lorank.engine.options import RankOptions, ScoringSetChoices, ScoringSetOptions, StableOptions
from lorank.methods.method import Method

I_LORA = Method(
    name="i-lora",
    reference="I-LoRA (anonymous EMNLP submission), eq. 4 and section 1.4",
    presets={
        # The text where it is explicit (eq. 4, one α of {0.1..1.0} for each batch, a scoring batch at every step, one
        # cut), and the recommended reading of A1 to A15 where it is not.
        "paper": ScoringSetChoices(
            measure=ScoringSetOptions(nodes="paper", intervals=10, draw="random", parameter_factor="none", every=1),
            cut=StableOptions(curve="one-shot"),
            ranks=RankOptions(rank_by="score", scope="global"),
        ),
        # Ours: with the parameter factor and a path of λ alone a unit's attribution is its share of the held-out loss
        # reduction, and the shares add up. Share per parameter is the greedy answer to where the next parameter buys
        # most. Midpoint nodes, because {0.1..1.0} is biased towards α = 1. Scores count from the middle of the search on: a
        # share of a loss reduction means little before there is one.
        "loss-per-parameter": ScoringSetChoices(
            measure=ScoringSetOptions(
                nodes="midpoint",
                intervals=10,
                draw="random",
                moved="lambda",
                parameter_factor="signed",
                every=1,
                warmup=0.5,
            ),
            cut=StableOptions(curve="one-shot"),
            ranks=RankOptions(rank_by="score-per-parameter", scope="global"),
        ),
    },
    default_preset="loss-per-parameter",
    earlier_default="paper",
    # The paper's first stage is as long as its second. Shares of a loss reduction need fewer steps: docs/where-ranks-matter.md.
    search_share={"loss-per-parameter": 0.3},
)
