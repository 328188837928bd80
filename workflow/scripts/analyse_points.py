"""Prompt one refiner with points, good and bad, on the test cases of a fold."""

from ultrarefiner.jobs import job
from ultrarefiner.refine.points import analyse_points

with job(snakemake):
    analyse_points(
        refiner=snakemake.wildcards.refiner,
        dataset=snakemake.wildcards.dataset,
        part=snakemake.wildcards.part,
        family=snakemake.params.family,
        weights=snakemake.params.weights,
        options=snakemake.params.options,
        images=snakemake.input.images,
        truth=snakemake.input.truth,
        masks=snakemake.input.masks,
        cases=snakemake.input.cases,
        splits=snakemake.input.splits,
        embeddings=snakemake.input.get("embeddings") or None,
        shelf=snakemake.resources.shelf,
        limit_gb=snakemake.resources.shelf_mb / 1000,
        output=snakemake.output.points,
        device=snakemake.params.device,
        **snakemake.params.analysis,
    )
