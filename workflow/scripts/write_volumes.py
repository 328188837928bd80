"""Write a method's masks of a part as volumes."""

from ultrarefiner.evaluation.volume_masks import write_volumes
from ultrarefiner.jobs import job

with job(snakemake):
    write_volumes(
        method=snakemake.wildcards.method,
        part=snakemake.wildcards.part,
        masks=snakemake.input.masks,
        volumes=snakemake.input.volumes,
        slices=snakemake.input.slices,
        splits=snakemake.input.splits,
        output=snakemake.output.volumes,
    )
