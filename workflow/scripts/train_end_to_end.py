"""Train a fold's coarse model and refiner as one."""

from pathlib import Path

from ultrarefiner.config import EndToEndConfig
from ultrarefiner.jobs import job
from ultrarefiner.training.end_to_end import train_end_to_end

with job(snakemake):
    train_end_to_end(
        config=EndToEndConfig.from_recipe(
            snakemake.params.recipe, snakemake.threads, snakemake.resources
        ),
        prepared=[Path(cases).parent for cases in snakemake.input.cases],
        splits=snakemake.input.splits,
        coarse_model=snakemake.input.coarse_model,
        coarse_card=snakemake.input.coarse_card,
        refiner_card=snakemake.input.card or None,
        shelf=snakemake.resources.shelf,
        limit_gb=snakemake.resources.shelf_mb / 1000,
        **snakemake.params.start,
        **dict(snakemake.output.items()),
    )
