"""Score one method on a part of a dataset."""

from ultrarefiner.evaluation.scores import score_masks
from ultrarefiner.jobs import job

with job(snakemake):
    score_masks(
        method=snakemake.wildcards.method,
        dataset=snakemake.wildcards.dataset,
        part=snakemake.wildcards.part,
        masks=snakemake.input.masks,
        truth=snakemake.input.truth,
        cases=snakemake.input.cases,
        splits=snakemake.input.splits,
        trained_on=snakemake.params.labels["trained_on"],
        prompt_source=snakemake.params.labels["prompt_source"],
        oracle=snakemake.params.labels["oracle"],
        selection=snakemake.params.labels["selection"],
        seen=snakemake.params.labels["seen"],
        output=snakemake.output.scores,
    )
