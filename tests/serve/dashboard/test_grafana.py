"""Files of `deploy/`: valid, and in terms of metrics that exist; to Prometheus too, where it is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from draftrec.cli.main import _app
from draftrec.serve.metrics import COUNTERS, GAUGES, HISTOGRAMS, ServiceMetrics, served
from tests.serve.test_metrics import step
from tests.waiting import until

DEPLOY = Path(__file__).parents[3] / "deploy"
_NAME = re.compile(r"(?:draftrec|process)_\w+")
needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)"
)


def expressions() -> Iterator[str]:
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    for panel in panels:
        for target in panel.get("targets", ()):
            yield target["expr"]


def alerts() -> dict[str, str]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def scraped_names() -> set[str]:
    """Names of series that a scrape may show, buckets of histograms among them."""
    families = list(ServiceMetrics().registry.collect())
    names = {f.name for f in families if f.type == "gauge"}
    names |= {f"{f.name}_total" for f in families if f.type == "counter"}
    for family in families:
        if family.type == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def test_every_metric_of_a_panel_or_an_alert_exists() -> None:
    used = (*expressions(), *alerts().values())
    named = {name for expression in used for name in _NAME.findall(expression)}
    assert len(named) > 40
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


_SERIES = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'draftrec_requests_total{{job="s", instance="a", route="/v1/knowledge", status="200"}}'
        values: '0+90x30'
      - series: 'draftrec_requests_total{{job="s", instance="a", route="/v1/knowledge", status="503"}}'
        values: '0+10x30'
      - series: 'draftrec_errors_total{{job="s", instance="a", kind="internal"}}'
        values: '0x20 1x10'
      - series: 'draftrec_last_reload_successful{{job="s", instance="a"}}'
        values: '1x10 0x20'
    alert_rule_test:
      - {{alertname: DraftrecFailing, eval_time: 4m, exp_alerts: []}}
      - alertname: DraftrecFailing
        eval_time: 12m
        exp_alerts:
          - exp_labels: {{severity: critical, job: s, instance: a, route: /v1/knowledge}}
            exp_annotations:
              summary: /v1/knowledge of a fails 10% of its requests
              description: Answers of 500 and above, for five minutes. draftrec_errors_total says of which kind.
      - {{alertname: DraftrecEngineFailed, eval_time: 19m, exp_alerts: []}}
      - alertname: DraftrecEngineFailed
        eval_time: 22m
        exp_alerts:
          - exp_labels: {{severity: warning, job: s, instance: a, kind: internal}}
            exp_annotations:
              summary: a met an error of kind internal that nobody expected
              description: The log has a line "error" with the place it came from.
      - {{alertname: DraftrecReloadFailed, eval_time: 9m, exp_alerts: []}}
      - alertname: DraftrecReloadFailed
        eval_time: 12m
        exp_alerts:
          - exp_labels: {{severity: warning, job: s, instance: a}}
            exp_annotations:
              summary: a could not load its files again, and goes on with the old
              description: The log's line "reload_failed" says what is wrong with them.
"""  # noqa: E501


@needs_promtool
def test_promtool_accepts_rules_config_and_metrics_and_alerts_fire(tmp_path: Path) -> None:
    series = tmp_path / "series.yml"
    series.write_text(_SERIES.format(rules=DEPLOY / "alerts.yml"))
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(DEPLOY / "alerts.yml"))
    promtool("check", "config", str(DEPLOY / "prometheus.example.yml"))
    promtool("test", "rules", str(series))
    told = promtool("check", "metrics", given=busy().render()[0])
    assert not told, told


@needs_promtool
@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")
@pytest.mark.slow
def test_a_real_prometheus_answers_every_panel_and_rule(tmp_path: Path) -> None:
    metrics = busy()
    with served(metrics, 0) as port, prometheus(tmp_path, port) as ask:
        until(lambda: ask("query", query='up{job="draftrec-service"} == 1')["result"])
        busy(metrics)
        until(lambda: ask("query", query="rate(draftrec_passes_total[10s]) > 0")["result"])
        empty = []
        for expression in expressions():
            query = expression.replace("$__rate_interval", "10s").replace("$job", ".*")
            if not ask("query", query=query)["result"]:
                empty.append(expression)
        assert not empty, empty
        rules = [r for group in ask("rules")["groups"] for r in group["rules"]]
        assert {r["name"] for r in rules} == set(alerts())
        until(lambda: all(r["health"] != "unknown" for r in ask("rules")["groups"][0]["rules"]))
        bad = [r["name"] for r in ask("rules")["groups"][0]["rules"] if r["health"] != "ok"]
        assert not bad, bad


def busy(metrics: ServiceMetrics | None = None) -> ServiceMetrics:
    """Metrics in which everything has been counted (once more)."""
    metrics = metrics or ServiceMetrics()
    route = "/v1/knowledge"
    metrics.expect([route], lambda: 2)
    metrics.observe_request(route, 200, 0.1, [0.01])
    metrics.set_queue(route, 1)
    metrics.observe_first_token(route, 0.05)
    metrics.observe_token_time(route, 0.01)
    metrics.observe_reload(succeeded=True, seconds=0.5)
    metrics.observe_step(step())
    metrics.observe_text("eos", 40)
    metrics.set_kv_capacity(1000, 1 << 20)
    metrics.set_pool(2048, 0.25, 10)
    metrics.set_drafter("head", 3, "abc")
    metrics.observe_beam_pass(users=8, rows=320, seconds=0.02)
    metrics.observe_beams([], results=3, invalid=1, partial=1)
    return metrics


def promtool(*words: str, given: bytes = b"") -> str:
    """What it says, after it succeeded."""
    done = subprocess.run(["promtool", *words], input=given, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


@contextmanager
def prometheus(folder: Path, port: int) -> Iterator[Any]:
    """One that scrapes the port each second by the example's config; asks its HTTP API."""
    config = yaml.safe_load((DEPLOY / "prometheus.example.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "alerts.yml")]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with served(ServiceMetrics(), 0) as free:
        pass  # a port that was free a moment ago
    address = f"127.0.0.1:{free}"
    words = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
    words += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(what: str, **query: str) -> Any:
        url = f"http://{address}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def is_there() -> bool:
        try:
            return bool(ask("rules"))
        except (urllib.error.URLError, ConnectionError):
            return False

    try:
        until(is_there)
        yield ask
    finally:
        process.terminate()
        process.wait(20)


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: (word, the rest), lines that go on joined."""
    text = (DEPLOY / "Dockerfile").read_text()
    whole = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.M))
    return [(w, rest.strip()) for w, rest in re.findall(r"^([A-Z]+) (.*)$", whole, flags=re.M)]


def is_command(words: list[str]) -> None:
    """Whether draftrec takes this line; what it would do is not done."""
    command: Any = typer.main.get_command(_app(words)).commands[words[0]]  # type: ignore[attr-defined]
    command.make_context(words[0], words[1:])


def test_the_dockerfile_installs_and_runs_what_there_is() -> None:
    found = instructions()
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    for word, rest in found:
        if word == "COPY":
            assert all((DEPLOY.parent / name).exists() for name in rest.split()[:-1]), rest
    given = dict(rest.partition("=")[::2] for word, rest in found if word == "ARG")
    used = set(re.findall(r"\$\{(\w+)", " ".join(rest for _, rest in found)))
    assert used == set(given)
    stages = [rest.split(" AS ")[1] for word, rest in found if word == "FROM" and " AS " in rest]
    assert stages == ["cpu", "cuda"]
    assert given["VARIANT"] in stages
    assert f"Python :: {given['PYTHON']}" in " ".join(project["classifiers"])
    assert f"torch=={given['TORCH']}\n" in (DEPLOY.parent / ".ci" / "run").read_text()
    runs = " ".join(rest for word, rest in found if word == "RUN")
    [extras] = re.findall(r'"\.\[(.*?)\]"', runs)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    [demo] = re.findall(r"draftrec (demo [^&]*)", runs)
    is_command(demo.split())
    said = {word: json.loads(rest) for word, rest in found if word in ("ENTRYPOINT", "CMD")}
    assert said["ENTRYPOINT"][0] in project["scripts"]
    is_command(said["CMD"])
    [port] = [rest for word, rest in found if word == "EXPOSE"]
    [health] = [rest for word, rest in found if word == "HEALTHCHECK"]
    assert said["CMD"][-2:] == ["--port", port]
    assert f"127.0.0.1:{port}/healthz" in health
    users = [rest for word, rest in found if word == "USER"]
    assert users
    assert f"--uid {users[-1]}" in runs


def test_compose_gives_prometheus_and_grafana_their_files() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services, configs = compose["services"], compose["configs"]
    build = services["draftrec"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    declared = {rest.partition("=")[0] for word, rest in instructions() if word == "ARG"}
    assert set(build["args"]) <= declared
    is_command(services["draftrec"]["command"])
    mounted: dict[str, Path] = {}
    for service in services.values():
        for volume in service.get("volumes", ()):
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                mounted[target] = DEPLOY / source
                assert mounted[target].is_file(), volume
            else:
                assert source in compose["volumes"]
    content = {
        it["target"]: yaml.safe_load(configs[it["source"]]["content"])
        for name in ("prometheus", "grafana")
        for it in services[name]["configs"]
    }
    prometheus = content["/etc/prometheus/prometheus.yml"]
    assert all(f"/etc/prometheus/{name}" in mounted for name in prometheus["rule_files"])
    # In a network of its own: the service's would be gone when that is started again.
    assert "network_mode" not in services["prometheus"]
    example = yaml.safe_load((DEPLOY / "prometheus.example.yml").read_text())
    [scraped] = prometheus["scrape_configs"]
    port = services["draftrec"]["command"][-1]
    assert scraped == {
        "job_name": example["scrape_configs"][0]["job_name"],  # the alerts' and the panels' word
        "static_configs": [{"targets": [f"draftrec:{port}"]}],
    }
    assert f"127.0.0.1:{port}:{port}" in services["draftrec"]["ports"]
    [source] = content["/etc/grafana/provisioning/datasources/draftrec.yaml"]["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert "127.0.0.1:9090:9090" in services["prometheus"]["ports"]
    [provider] = content["/etc/grafana/provisioning/dashboards/draftrec.yaml"]["providers"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    assert json.loads(mounted[home].read_text())["panels"]


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
def test_hadolint_finds_nothing() -> None:
    found = subprocess.run(
        ["hadolint", str(DEPLOY / "Dockerfile")], check=False, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
