"""Score one method on the volumes of a part of a dataset."""

from ultrarefiner.evaluation.volumes import score_volumes
from ultrarefiner.jobs import job

with job(snakemake):
    score_volumes(
        method=snakemake.wildcards.method,
        dataset=snakemake.wildcards.dataset,
        part=snakemake.wildcards.part,
        masks=snakemake.input.masks,
        truth=snakemake.input.truth,
        volumes=snakemake.input.volumes,
        slices=snakemake.input.slices,
        splits=snakemake.input.splits,
        **snakemake.params.labels,
        output=snakemake.output.scores,
    )
