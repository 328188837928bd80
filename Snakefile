# UltraRefiner: breast-ultrasound lesion masks, refined and compared.
# What depends on what; the work is done by the package in src/ultrarefiner.
from snakemake.utils import min_version

min_version("9.5")

# A study is one file: --configfile replaces the default, it is not merged over it.
if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


# Used only with `--software-deployment-method apptainer`; envs/README.md says how to build it.
container: "resources/containers/ultrarefiner.sif"


include: "rules/common.smk"
include: "rules/weights.smk"
include: "rules/prepare.smk"
include: "rules/coarse.smk"
include: "rules/finetune.smk"
include: "rules/refine.smk"
include: "rules/end_to_end.smk"
include: "rules/points.smk"
include: "rules/evaluate.smk"
include: "rules/volumes.smk"
include: "rules/report.smk"


onstart:
    require_files(STUDY)
    tell_of_other_code()


rule all:
    default_target: True
    input:
        unfinished,
        entries.exported(STUDY),
        volumes.mask_volumes(STUDY),
        f"results/{RUN}/study.json",
        f"results/{RUN}/report/report.html",
        f"results/{RUN}/report/scores.csv",
        f"results/{RUN}/report/summary.csv",
        f"results/{RUN}/report/comparisons.csv",
        f"results/{RUN}/report/tables",
