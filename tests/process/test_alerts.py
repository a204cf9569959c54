"""The dashboard and the alerts: each expression is parsed, and evaluated by Prometheus against a real `/metrics`."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.settings import Settings
from tests.conftest import GENEROUS_LIMITS, fresh_database
from tests.event_helpers import rows
from tests.gateways import DEV, PATH, VISIT, client, free_port
from tests.waiting import wait_until
from tests.websocket_client import GatewayServer, connect_to

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "deploy/prometheus/rules.yaml"
DASHBOARD = ROOT / "deploy/grafana/encounter-gateway.json"
RUNBOOKS = ROOT / "docs/runbooks.md"
PROMETHEUS, PROMTOOL = (shutil.which(name) for name in ("prometheus", "promtool"))

needs_prometheus = pytest.mark.skipif(
    not (PROMETHEUS and PROMTOOL), reason="Prometheus is not installed: apt-get install prometheus"
)
VARIABLES = {"$job": ".+", "$__rate_interval": "1m"}
"""What Grafana puts in place of the dashboard's variables."""

# Added by Prometheus to every series that it scrapes.
TARGET_LABELS = {"job", "instance"}


@cache
def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


@cache
def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def dashboard_expressions() -> list[str]:
    written = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [re.sub("|".join(map(re.escape, VARIABLES)), lambda found: VARIABLES[found[0]], each) for each in written]


def selectors(expression: Any, by: frozenset[str] = frozenset()) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield each metric of a parsed expression with the labels that are compared or grouped by."""
    match expression:
        case promql_parser.VectorSelector():
            assert expression.name is not None, "each selector names its metric"
            yield expression.name, by | {each.name for each in expression.matchers.matchers}
        case promql_parser.MatrixSelector():
            yield from selectors(expression.vector_selector, by)
        case promql_parser.AggregateExpr():
            yield from selectors(expression.expr, by | set(expression.modifier.labels if expression.modifier else ()))
        case promql_parser.BinaryExpr():
            yield from selectors(expression.lhs, by)
            yield from selectors(expression.rhs, by)
        case promql_parser.ParenExpr():
            yield from selectors(expression.expr, by)
        case promql_parser.Call():
            for argument in expression.args:
                yield from selectors(argument, by)
        case _:
            assert isinstance(expression, promql_parser.NumberLiteral), expression


async def live_gateway(server_url: str) -> str:
    """Return the URL of a new database with a sink, in which a recording with the notes `a cough` fails."""
    url = await fresh_database(server_url)
    await rows(url, "INSERT INTO patient_graph.patients (id, brand_id) VALUES ('demo-patient', 'loop')")
    await rows(url, "INSERT INTO gateway.sinks (name, position) VALUES ('hospital', 0)")
    check = "ADD CONSTRAINT no_cough CHECK (notes IS DISTINCT FROM 'a cough')"
    await rows(url, f"ALTER TABLE patient_graph.encounters {check}")
    return url


async def send_every_kind(origin: str) -> None:
    """Send requests that succeed, fail and are refused, to every door."""
    async with client() as http:
        for body in (VISIT, VISIT | {"notes": "a cough"}, VISIT | {"encounter_type": "none"}):
            await http.post(origin + PATH, json=body, headers=DEV)
        await http.post(f"{origin}/graphql", json={"query": "{ __typename }"}, headers=DEV)
        await http.get(origin + PATH, headers=DEV)
    async with connect_to(origin) as socket:
        await socket.authenticate()
        await socket.ask("{ __typename }")


@asynccontextmanager
async def gateway_with_traffic(server_url: str) -> AsyncIterator[GatewayServer]:
    url = await live_gateway(server_url)
    async with GatewayServer.serving(Settings(database_url=url, database_read_urls=url, **GENEROUS_LIMITS)) as server:
        origin = f"http://127.0.0.1:{server.port}"

        async def send() -> None:
            while True:
                await send_every_kind(origin)
                await asyncio.sleep(0.1)

        sending = asyncio.create_task(send())
        try:
            yield server
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending


async def test_each_expression_names_metrics_and_labels_of_a_scrape(server_url: str) -> None:
    url = await live_gateway(server_url)
    async with GatewayServer.serving(Settings(database_url=url, database_read_urls=url, **GENEROUS_LIMITS)) as server:
        origin = f"http://127.0.0.1:{server.port}"
        await send_every_kind(origin)
        async with client() as http:
            scrape = await http.get(f"{origin}/metrics", headers=DEV)
    known: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(scrape.text):
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    known["gateway_pool_refused_total"] = {"pool"}

    used = set()
    for rule in rules():
        for name, labels in selectors(promql_parser.parse(rule["expr"])):
            assert labels <= known[name] | TARGET_LABELS, rule
            used.add(name)
        if "record" in rule:
            known[rule["record"]] = {"door"}
    shown = set()
    for expression in dashboard_expressions():
        for name, labels in selectors(promql_parser.parse(expression)):
            assert labels <= known[name] | TARGET_LABELS, expression
            shown.add(name)
    ours = {re.sub("_(bucket|count|sum)$", "", name) for name in known if name.startswith("gateway_")}
    assert {re.sub("_bucket$", "", name) for name in shown} == ours, "the dashboard shows every metric"


def test_each_alert_has_a_severity_and_a_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)

    assert [alert["alert"] for alert in alerts()] == headings
    for alert in alerts():
        assert alert["annotations"]["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"
        assert alert["annotations"]["summary"]
        assert alert["labels"]["severity"] in {"page", "ticket"}


def test_each_runbook_has_meaning_confirmation_and_action() -> None:
    _, *sections = re.split(r"^## \w+$", RUNBOOKS.read_text(), flags=re.MULTILINE)

    for section in sections:
        assert re.findall(r"^\*\*(.+?)\*\*", section, re.MULTILINE) == ["Meaning.", "Confirm.", "Act."], section


def test_the_dashboard_has_a_data_source_to_choose_and_no_overlaps() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    taken = set[tuple[int, int]]()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "job"}
    assert {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]} == {"${datasource}"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(panel["description"] for panel in panels())


@asynccontextmanager
async def prometheus_for(gateway_port: int, folder: Path) -> AsyncIterator[str]:
    """Start Prometheus, which scrapes a gateway and loads the rules; yield its origin."""
    assert PROMETHEUS is not None
    configuration = {
        "global": {"scrape_interval": "300ms", "scrape_timeout": "300ms", "evaluation_interval": "300ms"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": "encounter-gateway",
                "authorization": {"credentials": "dev"},
                "static_configs": [{"targets": [f"127.0.0.1:{gateway_port}"]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    port = free_port()
    options = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            PROMETHEUS, *(f"--{name}={value}" for name, value in options.items()), stdout=log, stderr=log
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


@needs_prometheus
async def test_prometheus_evaluates_each_expression_against_a_real_gateway(server_url: str, tmp_path: Path) -> None:
    expressions = dashboard_expressions()
    async with (
        gateway_with_traffic(server_url) as server,
        prometheus_for(server.port, tmp_path) as origin,
        client() as http,
    ):

        async def result_of(expression: str) -> list[Any]:
            answer = (await http.get(f"{origin}/api/v1/query", params={"query": expression})).json()
            assert answer["status"] == "success", (expression, answer)
            found: list[Any] = answer["data"]["result"]
            return found

        async def every_expression_has_a_result() -> bool:
            try:
                return all([await result_of(expression) for expression in expressions])
            except (httpx2.TransportError, json.JSONDecodeError):
                return False  # Prometheus does not listen yet, or is not ready

        await wait_until(every_expression_has_a_result)

        async def every_rule_was_evaluated() -> list[Any]:
            groups = (await http.get(f"{origin}/api/v1/rules")).json()["data"]["groups"]
            loaded = [rule for group in groups for rule in group["rules"]]
            return loaded if all(rule["health"] == "ok" for rule in loaded) else []

        async def every_recording_rule_has_a_result() -> bool:
            return all([await result_of(rule["record"]) for rule in rules() if "record" in rule])

        async def the_recordings_of_a_cough_fire() -> bool:
            return any(
                rule["state"] == "firing"
                for rule in await every_rule_was_evaluated()
                if rule["name"] == "GatewayServerErrors"
            )

        # The first evaluations have too few samples for a rate.
        await wait_until(every_recording_rule_has_a_result)
        await wait_until(the_recordings_of_a_cough_fire)
        loaded = await every_rule_was_evaluated()

    assert {rule["name"] for rule in loaded} == {rule.get("alert", rule.get("record")) for rule in rules()}
    states = {rule["name"]: rule["state"] for rule in loaded if rule["type"] == "alerting"}
    assert {states[name] for name in ("GatewayDown", "GatewayDatabaseDown", "GatewaySinkDisabled")} == {"inactive"}


def series(name: str, **labels: str) -> str:
    """Return a series of a gateway, as Prometheus writes it."""
    every = {"job": "encounter-gateway", **labels}
    return name + "{" + ", ".join(f'{label}="{value}"' for label, value in every.items()) + "}"


BUCKET = "gateway_request_seconds_bucket"

FIRING: dict[str, tuple[dict[str, str], str, dict[str, str]]] = {
    # The series, by minute; the minute at which the alert fires; and its labels beside job and severity.
    "GatewayDown": ({series("up", instance="a"): "0x10"}, "3m", {"instance": "a"}),
    "GatewayDatabaseDown": (
        {series("gateway_database_up", instance="a"): "1x10", series("gateway_database_up", instance="b"): "0x10"},
        "2m",
        {},
    ),
    "GatewayNodeAway": (
        {
            series("gateway_cluster_nodes", instance="a", state="away"): "0 1x10",
            series("gateway_cluster_nodes", instance="a", state="answering"): "3 2x10",
        },
        "3m",
        {},
    ),
    "GatewayRequestsFailing": (
        {
            series("gateway_requests_total", door="rest", status="201"): "0+600x20",
            series("gateway_requests_total", door="rest", status="503"): "0+60x20",
        },
        "12m",
        {"door": "rest"},
    ),
    "GatewayServerErrors": ({series("gateway_refusals_total", code="server_error"): "0 0 1x10"}, "4m", {}),
    "GatewaySlow": (
        {
            series("gateway_requests_total", door="rest", status="200"): "0+600x30",
            series(BUCKET, door="rest", le="1.0"): "0+500x30",
            series(BUCKET, door="rest", le="2.5"): "0+600x30",
            series(BUCKET, door="rest", le="+Inf"): "0+600x30",
        },
        "20m",
        {"door": "rest"},
    ),
    "GatewayPoolExhausted": (
        {series("gateway_pool_refused_total", pool="requests"): "0+1x20"},
        "10m",
        {"pool": "requests"},
    ),
    "GatewayReplicaLeftOut": (
        {series("gateway_replica_in_use", replica="two:5432"): "1 0x10"},
        "8m",
        {"replica": "two:5432"},
    ),
    "GatewayEventsWaiting": ({series("gateway_events_oldest_seconds"): "0+60x10"}, "4m", {}),
    "GatewayEventsUnsettled": ({series("gateway_events_unsettled"): "2x10"}, "4m", {}),
    "GatewaySinkBehind": ({series("gateway_sink_oldest_seconds", sink="crm"): "0+60x30"}, "20m", {"sink": "crm"}),
    "GatewaySinkDisabled": ({series("gateway_sink_disabled", sink="crm"): "0 1x5"}, "3m", {"sink": "crm"}),
    "GatewayDeadLetters": ({series("gateway_sink_dead_letters", sink="crm"): "3 3 4x10"}, "5m", {"sink": "crm"}),
    "GatewayAuditRecordsDropped": ({series("gateway_audit_dropped_total"): "0 0 5x10"}, "4m", {}),
    # Promtool counts the time from 0.
    "GatewayAuditChainStopped": ({series("gateway_audit_chained_timestamp_seconds"): "60x20"}, "10m", {}),
    "GatewayIdentityProviderFailing": ({series("gateway_identity_provider_failures_total"): "0+1x20"}, "10m", {}),
    "GatewayLogLinesDropped": ({series("gateway_log_dropped_total"): "0 0 5x10"}, "4m", {}),
}

HEALTHY = {
    series("up"): "1x60",
    series("gateway_database_up"): "1x60",
    series("gateway_cluster_nodes", state="answering"): "3x60",
    series("gateway_cluster_nodes", state="away"): "0x60",
    series("gateway_requests_total", door="rest", status="201"): "0+600x60",
    series("gateway_requests_total", door="rest", status="503"): "0+1x60",
    series("gateway_refusals_total", code="validation_error"): "0+60x60",
    series(BUCKET, door="rest", le="0.1"): "0+600x60",
    series(BUCKET, door="rest", le="+Inf"): "0+601x60",
    series("gateway_pool_refused_total", pool="requests"): "7x60",
    series("gateway_replica_in_use", replica="two:5432"): "2 0 0 2x57",
    series("gateway_events_oldest_seconds"): "1 0 2 0x57",
    series("gateway_events_unsettled"): "0 3 0x58",
    series("gateway_sink_oldest_seconds", sink="crm"): "0 400 0x58",
    series("gateway_sink_disabled", sink="crm"): "0x60",
    series("gateway_sink_dead_letters", sink="crm"): "3x60",
    series("gateway_audit_dropped_total"): "5x60",
    series("gateway_audit_chained_timestamp_seconds", instance="a"): "0+60x60",
    series("gateway_audit_chained_timestamp_seconds", instance="a standby"): "60x60",
    series("gateway_audit_chained_timestamp_seconds", instance="without a chain"): "0x60",
    series("gateway_identity_provider_failures_total"): "5x60",
    series("gateway_log_dropped_total"): "5x60",
}


def test_each_alert_has_series_that_make_it_fire() -> None:
    assert list(FIRING) == [alert["alert"] for alert in alerts()]


@needs_prometheus
def test_each_alert_fires_on_its_fault_and_none_while_all_is_well(tmp_path: Path) -> None:
    severities = {alert["alert"]: alert["labels"]["severity"] for alert in alerts()}

    def case(given: dict[str, str], at: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in given.items()],
            "promql_expr_test": [{"expr": 'ALERTS{alertstate="firing"}', "eval_time": at, "exp_samples": samples}],
        }

    tests = [case(HEALTHY, at, []) for at in ("2m", "15m", "30m", "59m")]
    for name, (given, at, labels) in FIRING.items():
        alert = series("ALERTS", alertname=name, alertstate="firing", severity=severities[name], **labels)
        tests.append(case(given, at, [{"labels": alert, "value": 1}]))
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests})
    )

    run = subprocess.run(
        [str(PROMTOOL), "test", "rules", str(tmp_path / "test.yaml")], capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stdout + run.stderr
