"""The table of docs/metrics.md, from the catalogue of metrics: `python -m tests.worlds.metric_table` writes it."""

import re
from pathlib import Path

from nnunet_calib.metrics.catalogue import METRICS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
TABLE = re.compile(r"(<!-- metrics -->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)


def table() -> str:
    """Return a row for each metric, in the order of the catalogue."""
    rows = ["| name | definition | depends on | written |", "|---|---|---|---|"]
    for metric in METRICS:
        names = [f"`{metric.name}`", *([f"`brier_{metric.name}`"] if metric.brier_term else [])]
        options = [option for option, used in (("bins", metric.binned), ("`min_count`", metric.counted)) if used]
        written = {
            "means": metric.in_summary,
            "means of the sum": metric.brier_term,
            "cases, tables": metric.headline or metric.ranking or bool(metric.chance_of),
        }
        places = [place for place, there in written.items() if there]
        definition = metric.definition.replace(" * ", " · ").replace("|", r"\|").replace("min_count", "`min_count`")
        rows.append(f"| {', '.join(names)} | {definition} | {', '.join(options)} | {', '.join(places)} |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    """Return the page with the table that the catalogue gives now."""
    return TABLE.sub(lambda found: found[1] + table() + found[2], page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
