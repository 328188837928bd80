"""Cut crops around lesions, jittered as predicted boxes err, and write them as COCO."""

from pathlib import Path

from ultrarefiner.config import CropConfig
from ultrarefiner.jobs import job
from ultrarefiner.training.crops import crop_dataset

with job(snakemake):
    crop_dataset(
        prepared=[Path(cases).parent for cases in snakemake.input.cases],
        splits=snakemake.input.splits,
        fit=snakemake.wildcards.fit,
        errors=list(snakemake.input.errors),
        crop=CropConfig(**snakemake.params.crop["crop"]),
        copies=snakemake.params.crop["copies"],
        seed=snakemake.params.crop["seed"],
        output=snakemake.output.crops,
    )
