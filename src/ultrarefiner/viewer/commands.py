"""The command that opens the viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ultrarefiner.deploy.commands import Fold, MethodName, Results, Run, Trainset
from ultrarefiner.errors import ConfigError


def viewer(
    run: Run = None,
    method: MethodName = None,
    model: Annotated[
        Path | None, typer.Option(help="Exported folder, instead of --run and --method.")
    ] = None,
    trainset: Trainset = None,
    fold: Fold = None,
    results: Results = Path("results"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; default: a free one from 7860 on.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Look at images and prompt a refiner by hand, on a page in the browser."""
    from ultrarefiner.deploy.bundle import bundle_of_run, method_names, read_bundle

    _require_gradio()
    of_run = {"--run": run, "--method": method, "--trainset": trainset}
    given = [name for name, value in of_run.items() if value is not None]
    if model is not None and given:
        raise ConfigError(
            f"--model and {', '.join(given)} exclude each other; leave one of them out"
        )
    if model is not None:
        bundle = read_bundle(model).of_fold(fold)
    elif run is None:
        raise ConfigError("say which models: --run RUN --method METHOD, or --model FOLDER")
    elif method is None:
        names = ", ".join(method_names(results, run))
        raise ConfigError(f"--method is missing; run '{run}' has {names}")
    else:
        bundle = bundle_of_run(results, run, method, trainset, fold)
    from ultrarefiner.deploy.pipeline import open_method
    from ultrarefiner.viewer.app import build_page, serve_page
    from ultrarefiner.viewer.session import Viewer

    page = build_page(Viewer(open_method(bundle, device)))
    address = serve_page(page, port, browser)
    typer.echo(f"{bundle.method} at {address} (this machine alone); end with Ctrl + C")
    page.block_thread()


def _require_gradio() -> None:
    """Say how to install Gradio, before models are loaded."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"the viewer needs a package that is not installed ({error.name}). Run: "
            "pip install 'ultrarefiner[viewer]'"
        ) from None
