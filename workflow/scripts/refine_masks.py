"""Refine the masks of a part with one refiner and one prompt mode."""

from ultrarefiner.jobs import job
from ultrarefiner.refine.jobs import refine_masks

with job(snakemake):
    refine_masks(
        family=snakemake.params.family,
        weights=snakemake.params.weights,
        options=snakemake.params.options,
        prompts=snakemake.input.prompts,
        images=snakemake.input.images,
        soft_masks=snakemake.input.soft_masks,
        embeddings=snakemake.input.get("embeddings") or None,
        shelf=snakemake.resources.shelf,
        limit_gb=snakemake.resources.shelf_mb / 1000,
        output=snakemake.output.masks,
        table=snakemake.output.table,
        device=snakemake.params.device,
        card=snakemake.input.get("card") or None,
        protocol=snakemake.params.protocol,
        slices=snakemake.input.get("slices") or None,
    )
