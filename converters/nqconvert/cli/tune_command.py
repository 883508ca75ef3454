"""``nqz tune``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from nqconvert.cli.console import StageLines, call_object, emit, load_object
from nqconvert.cli.model_options import add_model_options, model_keywords, model_of

if TYPE_CHECKING:
    from nqconvert.tuning import Trial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model_options(parser)
    parser.add_argument("--train", required=True, help="package.module:function that returns Training")
    parser.add_argument(
        "--evaluate", required=True, help="package.module:function of a runner, on validation data"
    )
    parser.add_argument("--preset", default="deep-compression")
    parser.add_argument("--max-drop", type=float, default=0.3, help="points of accuracy; default 0.3")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--log", help="file of JSON lines: the search space, then every trial")


def run(arguments: argparse.Namespace) -> int:
    """Search and print the trials; exit code 1 if none keeps the bound."""
    from nqconvert.tuning import tune

    stages = StageLines(arguments)
    lines: list[str] = []

    def tell(trial: Trial) -> None:
        lines.append(_line(trial))
        stages(lines[-1])

    keywords = {name: value for name, value in model_keywords(arguments).items() if value is not None}
    keywords.pop("density", None)
    try:
        result = tune(
            model_of(arguments),
            call_object(arguments.train),
            evaluate=load_object(arguments.evaluate),
            preset=arguments.preset,
            max_drop=arguments.max_drop,
            trials=arguments.trials,
            log=arguments.log,
            progress=tell,
            **keywords,
        )
    finally:
        stages.done()
    best = result.best
    lines.append("no trial keeps the bound" if best is None else f"best: {_line(best)}")
    found = [asdict(trial) for trial in result.trials]
    told = {"space": dict(result.space), "trials": found, "best": None if best is None else asdict(best)}
    emit(arguments, "\n".join(lines), told)
    return 0 if best is not None else 1


def _line(trial: Trial) -> str:
    settings = ", ".join(f"{name} {value:.4g}" for name, value in trial.settings.items())
    if trial.file_bytes is None:
        return f"trial {trial.number}: {settings}: failed, {trial.error}"
    mark = "" if trial.kept else " (too much)"
    return f"trial {trial.number}: {settings}: {trial.file_bytes:,} bytes, drop {trial.drop:.3f}{mark}"
