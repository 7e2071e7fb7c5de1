"""The report of a defence that scanned nothing: what it was, and what it did to the model."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from cgd.files import write_text
from cgd.report import numbers
from cgd.report.reading import read_config, read_result
from cgd.text import plain

METRICS = (
    ("ca", "Clean accuracy"),
    ("asr", "Attack success rate"),
    ("ra", "Robust accuracy"),
)
SHOWN_ELSEWHERE = {"classes", "fingerprint", "version"}


def write_repair_report(run: Path) -> Path:
    """Write `report.html` into a run folder of `cgd defend` that holds no scan.

    Raises:
        InputError: a file of the run is missing or malformed.
    """
    config, result = read_config(run / "config.json"), read_result(run / "result.json")
    environment = Environment(
        loader=PackageLoader("cgd.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "plain": plain,
        "percent": numbers.percent,
        "duration": numbers.duration,
    }
    page = environment.get_template("repair.html").render(
        config=config,
        result=result,
        metrics=[
            (title, result.before.get(key), result.after.get(key))
            for key, title in METRICS
            if key in result.before or key in result.after
        ],
        settings=[
            (name, value)
            for name, value in config.items()
            if name not in SHOWN_ELSEWHERE and value not in (None, [], {})
        ],
    )
    path = run / "report.html"
    write_text(path, page)
    return path
