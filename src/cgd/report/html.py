"""From a run folder to one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from cgd.data.dataset import ImageData
from cgd.errors import InputError
from cgd.files import read_json, write_text
from cgd.report import text
from cgd.report.entropy_plot import entropy_plot
from cgd.report.pictures import thumbnail

PARTS = ("clean", "unused", "triggered")
NUMBERS = ("index", "label", "guide_label", "guide_rank", "suspect_rank")
MOST_CLASSES = 100
MOST_IMAGES = 48
MOST_SKIPPED = 20

METRICS = (
    ("ca", "Clean accuracy", "of clean test images recognised", True),
    ("asr", "Attack success rate", "of triggered test images taken for the target", False),
    ("ra", "Robust accuracy", "of the same triggered images recognised", True),
)
FOUND = (
    ("auroc", "AUROC of the poison score"),
    ("average_precision", "Average precision"),
    ("triggered_precision", "Poison among the triggered part"),
    ("triggered_recall", "Poison that is in the triggered part"),
    ("poison_in_clean", "Poisoned samples left in the clean part"),
)


def write_report(run: Path, data: ImageData | None = None) -> Path:
    """Write `report.html` into a run folder.

    Args:
        run: a folder of `cgd scan` or `cgd defend`, with config.json, result.json and
            scores.parquet.
        data: the data that was scanned, to show its most suspicious images.

    Returns:
        Path of the report.

    Raises:
        InputError: a file of the run is missing or malformed, or `data` is other data.
    """
    config, result = _record(run / "config.json"), _record(run / "result.json")
    scores = _Scores.read(run / "scores.parquet")
    if data is not None and len(data) != len(scores.label):
        raise InputError(
            f"{run}: the run is of {len(scores.label)} samples, but {data.source} has "
            f"{len(data)}; name the data it was made from"
        )
    classes = config.get("classes") or (data.classes if data else ())
    page = _template().render(
        config=config,
        result=result,
        metrics=_metrics(result),
        separation=_separation(result.get("separation")),
        parts=_parts(scores),
        plot=entropy_plot(scores.suspect_rank, scores.guide_rank, scores.part),
        concentration=_concentration(scores, classes),
        rows=_class_rows(scores, classes),
        most_classes=MOST_CLASSES,
        images=_images(scores, classes, data) if data else [],
        skipped=result.get("skipped") or [],
        most_skipped=MOST_SKIPPED,
        settings=_settings(config),
        seconds=result.get("seconds") or {},
    )
    path = run / "report.html"
    write_text(path, page)
    return path


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("cgd.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("plain", "number", "percent", "share", "duration"):
        environment.filters[name] = getattr(text, name)
    return environment.get_template("template.html")


def _record(path: Path) -> dict[str, Any]:
    record = read_json(path)
    if not isinstance(record, dict):
        raise InputError(f"{path}: not a JSON object; run the command that made it again")
    return record


@dataclass(frozen=True, eq=False)
class _Scores:
    """The columns of `scores.parquet` that the report needs; paths are read when asked for."""

    source: Path
    index: NDArray[np.int64]
    label: NDArray[np.int64]
    guide_label: NDArray[np.int64]
    guide_rank: NDArray[np.float64]
    suspect_rank: NDArray[np.float64]
    part: NDArray[np.str_]

    @classmethod
    def read(cls, path: Path) -> "_Scores":
        if not path.is_file():
            raise InputError(f"{path}: no such file; the report is of a finished scan or defence")
        try:
            table = pq.read_table(path, columns=[*NUMBERS, "part"])
            numbers = [table[name].to_numpy() for name in NUMBERS]
            part = table["part"].to_numpy(zero_copy_only=False).astype("U9")
        except (pa.ArrowException, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: not the scores of a scan ({reason})") from error
        if not len(part):
            raise InputError(f"{path}: holds no samples; scan some data")
        index, label, guide_label = (column.astype(np.int64) for column in numbers[:3])
        guide_rank, suspect_rank = (column.astype(np.float64) for column in numbers[3:])
        return cls(path, index, label, guide_label, guide_rank, suspect_rank, part)

    @property
    def poison_score(self) -> NDArray[np.float64]:
        return self.guide_rank - self.suspect_rank

    def paths(self, rows: NDArray[np.int64]) -> list[str]:
        column = pq.read_table(self.source, columns=["path"])["path"]
        return [str(path) for path in column.take(pa.array(rows)).to_pylist()]


def _metrics(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the measured metrics with their values before and after, in percent."""
    before, after = result.get("before") or {}, result.get("after") or {}
    reference = {"asr": result.get("asr_floor"), "ra": result.get("ra_ceiling")}
    found = [
        {
            "key": key,
            "title": title,
            "meaning": meaning,
            "before": before.get(key),
            "after": after.get(key),
            "reference": reference.get(key),
            "higher_is_better": higher,
        }
        for key, title, meaning, higher in METRICS
    ]
    return [entry for entry in found if (entry["before"], entry["after"]) != (None, None)]


def _separation(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what is known about the split, as (title, value in words)."""
    rows = []
    for key, title in FOUND:
        value = (found or {}).get(key)
        if value is None:
            continue
        if key == "poison_in_clean":
            rows.append((title, text.number(value)))
        elif key.startswith("triggered"):
            rows.append((title, text.percent(100 * value)))
        else:
            rows.append((title, f"{value:.3f}"))
    return rows


def _parts(scores: _Scores) -> dict[str, int]:
    return {name: int((scores.part == name).sum()) for name in PARTS}


def _class_name(classes: Sequence[Any], number: int) -> str:
    return text.plain(classes[number], 60) if 0 <= number < len(classes) else f"class {number}"


@dataclass(frozen=True)
class _ClassRow:
    """One given label: `samples` carry it, `triggered` of them look poisoned, and for `agreed` of
    them the guide says the same."""

    name: str
    samples: int
    triggered: int
    agreed: int


def _class_rows(scores: _Scores, classes: Sequence[Any]) -> list[_ClassRow]:
    """Return a row a class, those with the largest triggered share first."""
    labels = scores.label
    count = max(len(classes), int(labels.max()) + 1)
    samples = np.bincount(labels, minlength=count)
    triggered = np.bincount(labels[scores.part == "triggered"], minlength=count)
    agreed = np.bincount(labels[labels == scores.guide_label], minlength=count)
    order = np.argsort(-triggered / np.maximum(samples, 1), kind="stable")
    return [
        _ClassRow(_class_name(classes, c), int(samples[c]), int(triggered[c]), int(agreed[c]))
        for c in order.tolist()
    ]


def _concentration(scores: _Scores, classes: Sequence[Any]) -> dict[str, Any] | None:
    """Return the class that most of the triggered part carries, and its shares in [0, 1]."""
    triggered = scores.label[scores.part == "triggered"]
    if not len(triggered):
        return None
    top = int(np.bincount(triggered).argmax())
    return {
        "name": _class_name(classes, top),
        "of_triggered": float(np.mean(triggered == top)),
        "of_all": float(np.mean(scores.label == top)),
    }


@dataclass(frozen=True)
class _Image:
    """One thumbnail and what is said about it."""

    picture: str
    given: str
    guide: str
    part: str
    path: str
    score: float


def _images(scores: _Scores, classes: Sequence[Any], data: ImageData) -> list[_Image]:
    """Return the images with the highest poison scores."""
    score = scores.poison_score
    rows = np.argsort(-score, kind="stable")[:MOST_IMAGES]
    return [
        _Image(
            picture=thumbnail(data.images[row]),
            given=_class_name(classes, int(scores.label[row])),
            guide=_class_name(classes, int(scores.guide_label[row])),
            part=str(scores.part[row]),
            path=text.plain(path),
            score=float(score[row]),
        )
        for row, path in zip(rows.tolist(), scores.paths(rows), strict=True)
    ]


def _settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings as (name, value), without what the report shows elsewhere."""
    shown_elsewhere = {"classes", "fingerprint", "version"}
    return [
        (text.plain(name), text.plain(_in_words(value)))
        for name, value in config.items()
        if name not in shown_elsewhere and value not in (None, [], {})
    ]


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
