"""Join the predictions of the folds' models: mean probability, and majority of masks."""

from ultrarefiner.jobs import job
from ultrarefiner.training.ensemble import ensemble_masks

with job(snakemake):
    ensemble_masks(
        members=snakemake.input.probabilities,
        member_masks=snakemake.input.masks,
        cards=snakemake.input.cards,
        thresholds=snakemake.input.thresholds,
        splits=snakemake.input.splits,
        cases=snakemake.wildcards.cases,
        **dict(snakemake.output.items()),
    )
