"""Segment the test cases of a fold with the model that never saw them."""

from pathlib import Path

from ultrarefiner.jobs import job
from ultrarefiner.training.coarse import predict_coarse

with job(snakemake):
    predict_coarse(
        model=snakemake.input.model,
        card=snakemake.input.card,
        prepared=Path(snakemake.input.cases).parent,
        splits=snakemake.input.splits,
        fold=int(snakemake.wildcards.fold),
        protocol=snakemake.params.protocol,
        device=snakemake.params.device,
        **dict(snakemake.output.items()),
    )
