"""A calibration folder as one HTML file that needs nothing else: no network, no other file, no script to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_calib.report.case_pictures import OUTLINES, CasePicture, ImageOf, picture_bytes
from nnunet_calib.report.figures import figures
from nnunet_calib.report.page_text import case_table, facts, headline, notes
from nnunet_calib.report.pages import data_uri, definitions, inline_figure, write_page
from nnunet_calib.report.results import Results, case_error, worst_cases
from nnunet_calib.report.tables import number

PICTURES_MIB = 4.0  # all slices together; with base64 and the figures a page stays below 10 MB
_CAPTIONS = {
    "reliability": (
        "Reliability",
        "Of the voxels that get a probability within a bin, how many belong to the class. Blue bars below the dashed "
        "line: the model is too sure. Above each diagram, the share of the voxels in each bin.",
    ),
    "dataset_reliability_histogram": (
        "Dataset reliability histogram",
        "Each case counts once in each bin it has voxels in. Pooled diagrams can look calibrated while cases are not: "
        "here each case would have to lie on the diagonal.",
    ),
    "reliability_boxes": (
        "Box-plot reliability",
        "The same spread as quartiles: half of the cases lie within a box, its line is the median case.",
    ),
    "confidence": (
        "Confidence histogram",
        "Where the probabilities lie. Temperature scaling moves them away from 0 and 1, or towards them, and changes "
        "no segmentation.",
    ),
    "nll": (
        "NLL against temperature",
        "The fitted temperature is the minimum; the band is two standard errors wide on each side.",
    ),
}


def write_report(
    calibration_folder: Path,
    output: Path,
    *,
    image_of: ImageOf,
    dice: Mapping[str, float] | None = None,
    commands: Sequence[str] = (),
) -> None:
    """Write the report of a fold or of merged folds.

    Args:
        calibration_folder: with summary.json.
        output: the HTML file; it appears when it is complete.
        image_of: gives a case's image, or None.
        dice: case -> mean foreground Dice, from nnU-Net's own summary; None leaves the column out.
        commands: which make the same results again.

    Raises:
        FileNotFoundError: if summary.json or a case file that it names is not there.
        ValueError: if one of them is damaged.
    """
    results = Results.read(calibration_folder)
    content = _content(results, image_of, dice or {})
    write_page("report.html.j2", output, content | {"outlines": OUTLINES, "commands": commands})


def _content(results: Results, image_of: ImageOf, dice: Mapping[str, float]) -> dict[str, Any]:
    summary, model = results.summary, results.summary["model"]
    pictures, with_image = _pictures(results, image_of)
    columns, rows = case_table(results.cases, dice, {picture["name"]: picture["link"] for picture in pictures})
    left_out = len(results.cases) - len(pictures)
    described = [model.get(key) for key in ("trainer", "dataset", "configuration", "plans")]
    trainer, *rest = [str(value) for value in described if value] or [str(model.get("folder", "predictions"))]
    folds = model.get("folds", model.get("fold"))
    folds = ", ".join(map(str, folds)) if isinstance(folds, list) else folds
    return {
        "title": f"Calibration of {trainer}",
        "subtitle": ", ".join([*rest, *([] if folds is None else [f"fold {folds}"]), f"{len(results.cases)} cases"]),
        "headline": [*headline(summary)],
        "notes": [*notes(summary)],
        "figures": [
            inline_figure(draw, *_CAPTIONS[name])
            for name, draw in tqdm(figures(results).items(), desc="drawing figures", unit="figure")
        ],
        "columns": columns,
        "rows": rows,
        "cases_note": "ECE, ACE and MCE are means over the foreground classes of the whole image. A click on a column "
        "sorts.",
        "pictures": pictures,
        "background": "the image" if with_image else "the label map (no image was found)",
        "pictures_note": f"{left_out} cases with smaller ACE have no picture here." if left_out and pictures else "",
        "definitions": [*definitions(summary["definitions"])],
        "facts": [*facts(summary["nnunet_calib"], [model])],
    }


def _pictures(results: Results, image_of: ImageOf) -> tuple[list[dict[str, Any]], bool]:
    """Slices of the cases, those with the largest ACE first, until they are too much for a page."""
    heads, budget = results.summary["heads"], PICTURES_MIB * 2**20
    pictures, with_image = [], False
    for case in tqdm(worst_cases(results.cases), desc="drawing slices", unit="case"):
        if case.shown is None:
            continue
        image = image_of(case.name)
        with_image |= image is not None
        picture = CasePicture.of(
            case.shown, case.temperature, regions=heads["regions"], ignore_label=heads["ignore_label"], image=image
        )
        content, kind, (width, height) = picture_bytes(picture)
        budget -= len(content)
        if budget < 0:
            break
        caption = f"{heads['names'][picture.head]}, ACE {number(case_error(case.row, 'uncalibrated', 'ace'), 3)}, with "
        caption += f"T = {case.temperature:.3g} {number(case_error(case.row, 'calibrated', 'ace'), 3)}"
        pictures.append({
            "name": case.name, "link": f"case-{case.name}", "caption": caption, "uri": data_uri(content, kind),
            "width": width, "height": height,
        })  # fmt: skip
    return pictures, with_image
