"""Fetch a file of published weights."""

from ultrarefiner.jobs import job
from ultrarefiner.models.fetch import fetch_weights

with job(snakemake):
    fetch_weights(
        name=snakemake.params.name,
        target=snakemake.output.weights,
        mirrors=snakemake.params.mirrors,
        accepted=snakemake.params.accepted,
    )
