"""Encode the images of a part, as one view shows them, and index them on the shelf."""

from ultrarefiner.jobs import job
from ultrarefiner.refine.jobs import embed_images

with job(snakemake):
    embed_images(
        family=snakemake.params.family,
        weights=snakemake.params.weights,
        options=snakemake.params.options,
        images=snakemake.input.images,
        splits=snakemake.input.splits,
        part=snakemake.wildcards.part,
        masks=snakemake.input.get("masks") or None,
        window=snakemake.params.window,
        shelf=snakemake.resources.shelf,
        limit_gb=snakemake.resources.shelf_mb / 1000,
        output=snakemake.output.index,
        device=snakemake.params.device,
    )
