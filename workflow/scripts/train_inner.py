"""Train one coarse model on one inner fold."""

from pathlib import Path

from ultrarefiner.config import CoarseConfig
from ultrarefiner.jobs import job
from ultrarefiner.training.coarse import train_coarse

with job(snakemake):
    train_coarse(
        config=CoarseConfig.from_recipe(
            snakemake.params.training, snakemake.threads, snakemake.resources
        ),
        name=snakemake.wildcards.coarse,
        trainset=snakemake.wildcards.trainset,
        prepared=[Path(cases).parent for cases in snakemake.input.cases],
        splits=snakemake.input.splits,
        fold=int(snakemake.wildcards.inner),
        protocol=snakemake.params.protocol,
        device=snakemake.params.device,
        **dict(snakemake.output.items()),
    )
