"""Encode every image of a dataset once."""

from ultrarefiner.jobs import job
from ultrarefiner.refine.jobs import embed_images

with job(snakemake):
    embed_images(
        family=snakemake.params.family,
        weights=snakemake.params.weights,
        images=snakemake.input.images,
        cases=snakemake.input.cases,
        output=snakemake.output.embeddings,
        device=snakemake.params.device,
    )
