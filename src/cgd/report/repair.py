"""The report of a defence that scanned nothing: what it was, and what it did to the model."""

from pathlib import Path

from cgd.files import write_text
from cgd.report.page import METRICS, settings_of, template
from cgd.report.reading import read_config, read_result


def write_repair_report(run: Path, out: Path) -> Path:
    """Write `report.html` of a run folder of `cgd defend` that holds no scan into `out`.

    Raises:
        InputError: a file of the run is missing or malformed.
    """
    config, result = read_config(run / "config.json"), read_result(run / "result.json")
    page = template("repair.html").render(
        config=config,
        result=result,
        metrics=[
            (title, result.before.get(key), result.after.get(key))
            for key, title, *_ in METRICS
            if key in result.before or key in result.after
        ],
        settings=settings_of(config),
    )
    path = out / "report.html"
    write_text(path, page)
    return path
