"""Finetune one refiner on one fold, or on all of them."""

from pathlib import Path

from ultrarefiner.config import FinetuneConfig
from ultrarefiner.jobs import job
from ultrarefiner.training.refiner import train_refiner

with job(snakemake):
    train_refiner(
        config=FinetuneConfig.from_recipe(
            snakemake.params.recipe, snakemake.threads, snakemake.resources
        ),
        prepared=[Path(cases).parent for cases in snakemake.input.cases],
        splits=snakemake.input.splits,
        failures=list(snakemake.input.failures),
        predictions=list(snakemake.input.predictions),
        cards=list(snakemake.input.cards),
        crops=snakemake.input.crops or None,
        shelf=snakemake.resources.shelf,
        limit_gb=snakemake.resources.shelf_mb / 1000,
        overlaps=snakemake.input.get("shared") or None,
        **snakemake.params.start,
        **dict(snakemake.output.items()),
    )
