"""Record the study's configuration, which prediction on new images needs."""

from ultrarefiner.io import write_json
from ultrarefiner.jobs import job

with job(snakemake):
    write_json(snakemake.output.study, {"format": 1, "config": snakemake.params.config})
