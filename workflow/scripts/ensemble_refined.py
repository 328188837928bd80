"""Let the finetuned refiners of all folds decide together."""

from ultrarefiner.jobs import job
from ultrarefiner.training.ensemble import ensemble_refined

with job(snakemake):
    ensemble_refined(
        member_masks=list(snakemake.input.masks),
        cards=list(snakemake.input.cards),
        splits=snakemake.input.splits,
        cases=snakemake.wildcards.cases,
        output=snakemake.output.masks,
        table=snakemake.output.table,
    )
