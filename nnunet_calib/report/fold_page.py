"""The report of a calibration folder as a self-contained HTML file, readable without network or scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_calib.decisions.expected_of_folds import read_expected
from nnunet_calib.decisions.froc import read_lesions
from nnunet_calib.figures import froc_figure
from nnunet_calib.figures.case_figures import ImageOf
from nnunet_calib.figures.case_pictures import OUTLINES, CasePicture, colour_bar, picture_bytes
from nnunet_calib.figures.drawn_results import Results, worst_cases
from nnunet_calib.figures.expected_figure import CAPTION, TITLE, expected_figure
from nnunet_calib.figures.fold_figures import FIGURES
from nnunet_calib.io.wording import number
from nnunet_calib.metrics.catalogue import HEAD_LABELS
from nnunet_calib.report.fold_words import LOOKED_AT, case_table, facts, headline, headline_csv, look_table, notes
from nnunet_calib.report.page import data_uri, definitions, inline_figure, write_page
from nnunet_calib.report.verdict import verdict
from nnunet_calib.results.error_tree import case_error
from nnunet_calib.results.schemas import STAGES, Summary

PICTURES_MIB = 4.0  # for all slices; with base64 and the figures, a page stays below 10 MB
LOOK_NOTE = (
    "The lowest expected Dice first, which needs no ground truth; beside it the true Dice. Where the two differ "
    f"most, the probabilities mislead. The table shows {LOOKED_AT} rows, the CSV file all. A click on a column sorts."
)


def write_report(
    calibration_folder: Path,
    output: Path,
    *,
    image_of: ImageOf,
    dice: Mapping[str, float] | None = None,
    commands: Sequence[str] = (),
    summary: Summary | None = None,
) -> None:
    """Write the report of a fold or of merged folds.

    Args:
        calibration_folder: the calibration folder, with summary.json.
        output: the HTML file, which is written atomically.
        image_of: returns a case's image, or None.
        dice: case -> mean foreground Dice, from nnU-Net's own summary; None leaves out the column.
        commands: commands that reproduce the results.
        summary: content of summary.json with another calibrator, from `summary_with`; None for the file's.

    Raises:
        FileNotFoundError: if summary.json or a case file that it names is missing.
        ValueError: if one of them is damaged.
    """
    results = Results.read(calibration_folder, summary)
    content = _content(results, image_of, dice or {})
    content |= {"verdict": [*verdict(results, calibration_folder)], "to_look_at": None}
    if (expected := read_expected(calibration_folder)) is not None:
        draw = partial(expected_figure, expected, results.names_by_key)
        content["figures"].append(inline_figure(draw, TITLE, CAPTION))
        links, names = _links(content["pictures"]), results.names_by_key
        content["to_look_at"] = look_table(expected, names, links, results.calibrator.short)
        content["look_note"] = LOOK_NOTE
    if (lesions := read_lesions(calibration_folder)) is not None:
        draw = partial(froc_figure.froc_figure, lesions, results.foreground_names)
        content["figures"].append(inline_figure(draw, froc_figure.TITLE, froc_figure.CAPTION))
    write_page(
        "report.html.j2",
        output,
        content | {"outlines": OUTLINES, "commands": commands, "colours": data_uri(colour_bar(), "image/png")},
    )


def _content(results: Results, image_of: ImageOf, dice: Mapping[str, float]) -> dict[str, Any]:
    summary, model = results.summary, results.summary["model"]
    pictures, with_image = _pictures(results, image_of)
    lines = [*headline(summary)]
    left_out = len(results.cases) - len(pictures)
    described = [model.get(key) for key in ("trainer", "dataset", "configuration", "plans")]
    trainer, *rest = [str(value) for value in described if value] or [str(model.get("folder", "predictions"))]
    of_one, merged = model.get("fold"), summary["temperature"].get("folds") or []
    folds = f"folds {', '.join(map(str, merged))}" if len(merged) > 1 else None if of_one is None else f"fold {of_one}"
    return {
        "title": f"Calibration of {trainer}",
        "subtitle": ", ".join([*rest, *([folds] if folds else []), f"{len(results.cases)} cases"]),
        "headline": lines,
        "headline_csv": headline_csv(lines, results.calibrator.noun),
        "notes": [*notes(summary)],
        "calibrator": results.calibrator.noun,
        "figures": [
            inline_figure(
                partial(spec.draw, results, image_of), spec.title, spec.caption.format(effect=results.calibrator.effect)
            )
            for spec in tqdm(FIGURES, desc="drawing figures", unit="figure")
        ],
        "cases": case_table(results.cases, dice, _links(pictures), type(results.calibrator)),
        "cases_note": f"{HEAD_LABELS} are means over the foreground classes of the whole image. A click on a column "
        "sorts.",
        "pictures": pictures,
        "background": "the image" if with_image else "the label map (no image was found)",
        "pictures_note": f"{left_out} cases with smaller ACE have no picture here." if left_out and pictures else "",
        "definitions": [*definitions(summary["definitions"])],
        **facts(summary["nnunet_calib"], [model]),
    }


def _links(pictures: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return case -> anchor of its slice."""
    return {picture["name"]: picture["link"] for picture in pictures}


def _pictures(results: Results, image_of: ImageOf) -> tuple[list[dict[str, Any]], bool]:
    """Draw slices of the cases, largest ACE first, until they become too large for a page."""
    heads, budget = results.summary["heads"], PICTURES_MIB * 2**20
    pictures, with_image = [], False
    for case in tqdm(worst_cases(results.cases), desc="drawing slices", unit="case"):
        shown = case.shown
        if shown is None:
            continue
        image = image_of(case.name)
        with_image |= image is not None
        picture = CasePicture.of(
            shown, case.calibrator, regions=heads["regions"], ignore_label=heads["ignore_label"], image=image
        )
        content, kind, (width, height) = picture_bytes(picture)
        budget -= len(content)
        if budget < 0:
            break
        before, after = (number(case_error(case.row[stage]["image"], "ace"), 3) for stage in STAGES)
        caption = (
            f"{heads['names'][picture.head]}. ACE of the case: {before}; with {case.calibrator.words('.3g')}: {after}"
        )
        pictures.append(
            {
                "name": case.name,
                "link": f"case-{case.name}",
                "caption": caption,
                "uri": data_uri(content, kind),
                "width": width,
                "height": height,
            }
        )
    return pictures, with_image
