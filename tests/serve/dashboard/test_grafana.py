"""Files of `deploy/`: valid, and in terms of metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from draftrec.serve.metrics import COUNTERS, GAUGES, HISTOGRAMS, ServiceMetrics

DEPLOY = Path(__file__).parents[3] / "deploy"
_NAME = re.compile(r"draftrec_\w+")


def expressions() -> Iterator[str]:
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    for panel in panels:
        for target in panel.get("targets", ()):
            yield target["expr"]


def scraped_names() -> set[str]:
    """Names of series that a scrape may show, buckets of histograms among them."""
    families = list(ServiceMetrics().registry.collect())
    names = {f.name for f in families if f.type == "gauge"}
    names |= {f"{f.name}_total" for f in families if f.type == "counter"}
    for family in families:
        if family.type == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def test_every_metric_of_a_panel_exists() -> None:
    named = {name for expression in expressions() for name in _NAME.findall(expression)}
    assert len(named) > 30
    assert named <= scraped_names()


def test_every_metric_has_a_panel() -> None:
    text = " ".join(expressions())
    unseen = {name for name in (*COUNTERS, *GAUGES, *HISTOGRAMS) if f"draftrec_{name}" not in text}
    assert unseen == {"texts", "pool_texts", "kv_capacity_bytes", "beam_passes", "beam_pass_rows",
                      "beam_drafted_rows", "drafter_info"}  # fmt: skip


def test_expressions_close_their_brackets_and_panels_do_not_overlap() -> None:
    for expression in expressions():
        for pair in ("()", "{}", "[]"):
            assert expression.count(pair[0]) == expression.count(pair[1]), expression
    seen: set[tuple[int, int]] = set()
    for panel in json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & seen
        assert place["x"] + place["w"] <= 24
        seen |= cells


def test_the_scrape_example_is_valid_and_stays_on_the_loopback() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.example.yml").read_text())
    targets = [t for job in config["scrape_configs"] for s in job["static_configs"]
               for t in s["targets"]]  # fmt: skip
    assert [t.partition(":")[0] for t in targets] == ["127.0.0.1", "127.0.0.1"]
