"""The commands that take trained models out of a study: `predict` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ultrarefiner.errors import ConfigError, UltraRefinerError

Run = Annotated[str | None, typer.Option(help="Name of a finished run.")]
MethodName = Annotated[
    str | None, typer.Option("--method", help="Method of the run, such as transunet or sam-box.")
]
Trainset = Annotated[
    str | None, typer.Option(help="What the models were trained on; default: the only one.")
]
Fold = Annotated[int | None, typer.Option(help="Models of one fold; default: all folds jointly.")]
Results = Annotated[Path, typer.Option(help="Results folder.")]


def predict(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="PNG, JPEG, BMP, TIFF, DICOM; volumes: .nii.gz, .nii, .nrrd, .npy; or folders.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to fill.")],
    run: Run = None,
    method: MethodName = None,
    model: Annotated[
        Path | None, typer.Option(help="Exported folder, instead of --run and --method.")
    ] = None,
    trainset: Trainset = None,
    fold: Fold = None,
    threshold: Annotated[
        float | None, typer.Option(help="Of the probability; default: the method's own.")
    ] = None,
    results: Results = Path("results"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images seen together.")] = 8,
    overlays: Annotated[bool, typer.Option(help="Draw the outlines into the images.")] = True,
    axis: Annotated[
        str | None, typer.Option(help="Axes of volumes, HWD or DHW; default: as in training.")
    ] = None,
    axis_check: Annotated[
        bool, typer.Option(help="Refuse volumes whose spacing or sizes speak against it.")
    ] = True,
) -> None:
    """Segment new images or volumes with a method of a finished run, or of an exported folder."""
    from ultrarefiner.deploy.bundle import read_bundle
    from ultrarefiner.deploy.inputs import find_inputs
    from ultrarefiner.deploy.predict import predict_images
    from ultrarefiner.deploy.volumes import predict_volumes

    of_run = {"--run": run, "--method": method, "--trainset": trainset}
    if model is not None:
        _refuse("--model", of_run)
        bundle = read_bundle(model).of_fold(fold)
    elif all(value is None for value in of_run.values()):
        raise ConfigError("say which models: --run RUN --method METHOD, or --model FOLDER")
    else:
        bundle = _of_run(results, run, method, trainset, fold)
    found = find_inputs(images, without=output)
    given = bundle, found, output, device, threshold, batch_size, overlays
    if found.volumes:
        counts = predict_volumes(*given, axis, axis_check, tell=_tell)
    elif axis is not None or not axis_check:
        raise ConfigError("--axis and --no-axis-check are about volumes, and these are images")
    else:
        counts = predict_images(*given, tell=_tell)
    what = "volumes" if found.volumes else "images"
    kept = f", {counts.kept} kept from before" if counts.kept else ""
    failed = f", {counts.failed} failed" if counts.failed else ""
    typer.echo(f"{counts.predicted} of {counts.images} {what} predicted{kept}{failed}: {output}")
    for words, count in sorted(counts.warnings.items()):
        typer.echo(f"  {words}: {count}")
    if counts.failed:
        _tell(f"{counts.failed} {what} have no mask; {output}/predictions.csv says why")
        raise typer.Exit(1)


def export(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File or folder to make; must not exist.")
    ],
    model: Annotated[
        Path | None,
        typer.Argument(help="Weights file, finetuned or published: it becomes one checkpoint."),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Family of MODEL; default: what the file says, or sam.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Layout of MODEL: sam, ultrasam, sam_unet; default: its own.")
    ] = None,
    run: Run = None,
    method: MethodName = None,
    trainset: Trainset = None,
    fold: Fold = None,
    results: Results = Path("results"),
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX files into the folder.")] = False,
) -> None:
    """Write MODEL as a plain checkpoint; or, with --run and --method, a method as one folder."""
    of_run = {"--run": run, "--method": method, "--trainset": trainset, "--fold": fold}
    if model is not None:
        _refuse("MODEL", of_run | {"--onnx": onnx or None})
        if output.exists():
            raise UltraRefinerError(f"{output} exists; name a file that does not")
        from ultrarefiner.models.export import export_sam

        typer.echo(f"{output}: layout {export_sam(model, family, output, layout)}")
        return
    if all(value is None for value in of_run.values()):
        raise ConfigError("give MODEL, a weights file, or --run and --method for a whole method")
    _refuse("--run", {"--family": family, "--layout": layout})
    from ultrarefiner.deploy.bundle import write_bundle

    networks = None
    if onnx:
        from ultrarefiner.deploy.onnx import export_folder_onnx as networks
    bundle = write_bundle(_of_run(results, run, method, trainset, fold), output, networks)
    folds = ", ".join(map(str, bundle.folds))
    typer.echo(f"{output}: {bundle.method}, trained on {bundle.trainset}, folds {folds}")
    typer.echo(f"Terms of use: {output}/LICENCE.md")


def _of_run(
    results: Path, run: str | None, method: str | None, trainset: str | None, fold: int | None
) -> Any:
    from ultrarefiner.deploy.bundle import bundle_of_run, method_names

    if run is None:
        raise ConfigError("--run is missing: say which run the method is of")
    if method is None:
        names = ", ".join(method_names(results, run))
        raise ConfigError(f"--method is missing; run '{run}' has {names}")
    return bundle_of_run(results, run, method, trainset, fold)


def _refuse(what: str, others: dict[str, Any]) -> None:
    """Refuse options that contradict another one."""
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ConfigError(
            f"{what} and {', '.join(given)} exclude each other; leave one of them out"
        )


def _tell(text: str) -> None:
    typer.echo(text, err=True)
