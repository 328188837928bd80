"""Score one method on the test cases of one fold."""

from ultrarefiner.evaluation.scores import score_masks
from ultrarefiner.jobs import job

with job(snakemake):
    score_masks(
        method=snakemake.wildcards.method,
        dataset=snakemake.wildcards.dataset,
        fold=int(snakemake.wildcards.fold),
        masks=snakemake.input.masks,
        truth=snakemake.input.truth,
        cases=snakemake.input.cases,
        splits=snakemake.input.splits,
        output=snakemake.output.scores,
        **dict(snakemake.params.items()),
    )
