"""Predict the cases that the model of an inner fold has not seen."""

from pathlib import Path

from ultrarefiner.jobs import job
from ultrarefiner.training.inner import predict_inner

with job(snakemake):
    predict_inner(
        model=snakemake.input.model,
        card=snakemake.input.card,
        prepared=[Path(cases).parent for cases in snakemake.input.cases],
        splits=snakemake.input.splits,
        fold=int(snakemake.wildcards.inner),
        flips=snakemake.params.flips,
        output=snakemake.output.probabilities,
        device=snakemake.params.device,
    )
