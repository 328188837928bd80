"""Sections about images: datasets, phantoms and folds."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ultrarefiner.config.base import NAME, Section


class PhantomConfig(Section):
    """Synthetic ultrasound, written in the layout of the dataset, instead of real files."""

    cases: int = Field(
        48, ge=4, description="Images with a lesion; of `volumes` volumes of 12 slices."
    )
    size: int = Field(
        192, ge=48, le=1024, description="Typical image height in pixels (stu: always 128)."
    )
    seed: int = Field(0, ge=0, description="Seed of the generator.")
    odd_cases: bool = Field(
        True, description="Include the odd files of the real dataset (modes, sizes, several masks)."
    )


class DatasetConfig(Section):
    """One dataset: a folder of files as downloaded, or phantoms."""

    root: str | None = Field(
        None, min_length=1, description="Folder of the dataset as downloaded; only read."
    )
    phantom: PhantomConfig | None = Field(None, description="Make phantoms instead of `root`.")
    layout: str | None = Field(
        None, description="Layout of the folder; the dataset's own name when absent."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="The layout's own keys (volumes, abus, pairs, coco, ...)."
    )
    role: Literal["train", "unseen"] = Field(
        "train", description="`unseen`: no model trains on it; models of other datasets are tested."
    )
    folds: Literal["made", "published"] = Field(
        "made", description="`published` takes the dataset's own folds (busbra: 5 or 10)."
    )
    official_test: bool | None = Field(
        None,
        description="Hold out the dataset's official test part (abus, samed2d, manifest with a "
        "column `split`) instead of a share. Default: where the layout always has one (abus).",
    )
    include_empty: bool = Field(
        False,
        description="Keep images without a lesion (BUSI normal/, blank masks). Slices of whole "
        "volumes are kept without it.",
    )
    curation: str | None = Field(
        None,
        min_length=1,
        description="YAML file that excludes or relabels cases, each with a reason.",
    )
    shares_images_with: list[str] = Field(
        default_factory=list,
        description="Datasets of the study known to hold some of the same images. Without this "
        "equal images in two datasets are an error; with it they are kept apart: none is tested "
        "by a model that trained on its copy.",
    )
    export: Literal["samed2d", "medsam2"] | None = Field(
        None,
        description="`samed2d`: write the folds to run, or all cases of role `unseen`, as "
        "SA-Med2D folders too, for other tools. `medsam2`: as npz files of whole volumes, for "
        "MedSAM2's own training.",
    )
    modality: str | None = Field(
        None,
        description="What the images are (`ultrasound`, `ct`, `pet`, `mr`, ...); the zero-shot "
        "tables are grouped by it. Default: `ultrasound` for the published layouts, unknown for "
        "your own files.",
    )

    @field_validator("modality")
    @classmethod
    def _plain_modality(cls, value: str | None) -> str | None:
        if value is not None and not NAME.fullmatch(value):
            raise ValueError(
                f"'{value}' is no plain name; write it in lower case, as `ct` or `mr_t2`"
            )
        return value

    @model_validator(mode="after")
    def _one_source(self) -> DatasetConfig:
        if (self.root is None) == (self.phantom is None):
            raise ValueError("give either `root` (a folder) or `phantom` (synthetic images)")
        if self.role == "unseen" and self.folds == "published":
            raise ValueError("folds has no effect on a dataset of role `unseen`; remove it")
        return self


class SplitsConfig(Section):
    """Who is in which fold; decided once, for every method."""

    folds: int = Field(5, ge=2, le=20, description="Outer folds.")
    run: Literal["all"] | list[int] = Field(
        "all", description="Folds to run; `[0]` for a quick look."
    )
    group: Literal["auto", "patient", "duplicates", "image"] = Field(
        "auto",
        description="What never crosses a fold. `auto`: the patient where the dataset tells it, "
        "else the near-duplicate cluster, else the image; equal pixels stay together. `patient`: "
        "patients, joined where they share equal pixels. `duplicates`: equal pixels, and "
        "near-duplicates where the patient is unknown; patients may cross. `image`: nothing.",
    )
    validation: float = Field(
        0.15, gt=0.0, lt=0.5, description="Share of the training groups kept for model selection."
    )
    holdout: float = Field(
        0.0,
        ge=0.0,
        lt=0.5,
        description="Share of each dataset's groups kept out of every fold and every phase; scored "
        "by the model of each fold and by their ensemble. A dataset with an official test part "
        "(`official_test`) keeps that out instead.",
    )
    seed: int = Field(123, ge=0, description="Seed of the folds.")
    protocol: Literal["nested", "seed"] = Field(
        "nested",
        description="`nested` selects on validation and reports on test; `seed` is the original "
        "KFold with validation = test, and its rows say so.",
    )

    @model_validator(mode="after")
    def _folds_exist(self) -> SplitsConfig:
        if self.run != "all":
            wrong = [fold for fold in self.run if not 0 <= fold < self.folds]
            if wrong or not self.run:
                raise ValueError(f"run: {self.run} must name folds from 0 to {self.folds - 1}")
        return self

    def recipe(self) -> dict[str, Any]:
        """Return what the folds depend on: not which of them run, nor keys without effect."""
        return self.model_dump(
            exclude={"run", "validation"} if self.protocol == "seed" else {"run"}
        )

    @property
    def run_folds(self) -> list[int]:
        """The folds to run, ascending."""
        return list(range(self.folds)) if self.run == "all" else sorted(set(self.run))
