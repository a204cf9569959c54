"""The chart, rendered by Helm's own engine, is valid by the schemas of Kubernetes, and restricted.

Helm's SDK and the schemas are packages of `.venv/deploy`. No cluster takes part.
"""

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import SecretStr

from gateway.events.status import EventStatus
from gateway.metrics_endpoint import from_database
from gateway.observability.metrics import REGISTRY
from gateway.settings import PREFIX, Settings
from tests.gateways import ROOT

PYTHON = ROOT / ".venv/deploy/bin/python"
CHART = ROOT / "deploy/helm/encounter-gateway"
VERSIONS = ("1.27", "1.37")
"""Of Kubernetes: the oldest that the chart allows, and the newest with published schemas."""

pytestmark = pytest.mark.skipif(
    not list((ROOT / ".venv/deploy").glob("lib/*/site-packages/helm_python")),
    reason="Helm's SDK is not installed: make .venv/deploy",
)

REQUIRED = {"image": {"repository": "registry.example/encounter-gateway"}, "database": {"secret": "gateway"}}
SECRETS = [
    {"setting": "GATEWAY_AUDIT_KEY", "secret": "gateway", "key": "audit-key"},
    {"setting": "GATEWAY_WEBHOOKS", "secret": "gateway", "key": "webhooks"},
]
EVERYTHING = REQUIRED | {
    "settings": {
        "GATEWAY_MAX_BODY_BYTES": 524288,
        "GATEWAY_FEDERATION": True,
        "GATEWAY_ORIGINS": {"app": ["https://a"]},
        "GATEWAY_PUBLIC_URL": "https://gateway.example/gateway/",
    },
    "secrets": SECRETS,
    "drain": {"pauseSeconds": 7, "seconds": 20},
    "trustedProxies": "10.0.0.0/8",
    "ingress": {"enabled": True, "host": "gateway.example", "tlsSecret": "certificate", "className": "nginx"},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "tokenSecret": "metrics"},
    "prometheusRule": {"enabled": True},
    "podLabels": {"team": "records"},
    "tolerations": [{"key": "clinical", "operator": "Exists"}],
}
AT_THE_ROOT = EVERYTHING | {"settings": {}}
# OpenShift chooses the users.
ANY_USER = REQUIRED | {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no repository": ({"database": {"secret": "gateway"}}, "image.repository"),
    "no secret of the database": ({"image": {"repository": "one"}}, "database.secret"),
    "a secret among the settings": (
        REQUIRED | {"settings": {"GATEWAY_DATABASE_URL": "postgresql://…"}},
        "GATEWAY_DATABASE_URL",
    ),
    "a misspelt value": (REQUIRED | {"replica": 3}, "replica"),
    "an ingress without TLS": (REQUIRED | {"ingress": {"enabled": True, "host": "gateway.example"}}, "tlsSecret"),
}


@pytest.fixture(scope="module")
def rendered() -> list[Any]:
    """What `manifests.py` prints for each of the values: manifests, or a message."""
    given = [REQUIRED, EVERYTHING, ANY_USER, AT_THE_ROOT, *(values for values, _ in REFUSED.values())]
    ran = subprocess.run(
        [PYTHON, Path(__file__).with_name("manifests.py"), *VERSIONS],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    results: list[Any] = json.loads(ran.stdout)
    return results


def by_kind(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len({each["kind"] for each in manifests}) == len(manifests)
    return {each["kind"]: each for each in manifests}


def test_the_manifests_are_valid_and_complete(rendered) -> None:
    usual = {"Deployment", "Job", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount"}

    assert by_kind(rendered[0]).keys() == usual
    assert by_kind(rendered[1]).keys() == usual | {
        "HorizontalPodAutoscaler", "Ingress", "PrometheusRule", "ServiceMonitor",
    }  # fmt: skip


def test_every_pod_is_restricted_and_has_no_token(rendered) -> None:
    for manifests in rendered[:3]:
        for kind in ("Deployment", "Job"):
            pod = by_kind(manifests)[kind]["spec"]["template"]["spec"]
            (container,) = pod["containers"]

            # The profile "restricted" of Pod Security Standards, and a read-only root.
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
    assert "runAsUser" not in by_kind(rendered[2])["Deployment"]["spec"]["template"]["spec"]["securityContext"]


def test_settings_are_variables_and_secrets_are_files(rendered) -> None:
    pod = by_kind(rendered[1])["Deployment"]["spec"]["template"]["spec"]
    variables = {each["name"]: each.get("value", each.get("valueFrom")) for each in pod["containers"][0]["env"]}
    (sources,) = (volume["projected"]["sources"] for volume in pod["volumes"] if volume["name"] == "secrets")
    (mount,) = (each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "secrets")
    files = {f"{mount['mountPath']}/{item['path']}" for source in sources for item in source["secret"]["items"]}

    assert {value for name, value in variables.items() if name.endswith("_FILE")} == files
    assert variables["GATEWAY_AUDIT_KEY_FILE"] in files
    assert variables["GATEWAY_WEBHOOKS"] == {"secretKeyRef": {"name": "gateway", "key": "webhooks"}}
    assert variables["GATEWAY_MAX_BODY_BYTES"] == "524288"
    assert variables["GATEWAY_FEDERATION"] == "true"
    assert json.loads(variables["GATEWAY_ORIGINS"]) == {"app": ["https://a"]}
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {"FORWARDED_ALLOW_IPS"}
    assert {name.removesuffix("_FILE") for name in variables} <= known


def test_the_ingress_serves_the_path_of_the_public_url(rendered) -> None:
    below, root = (
        by_kind(manifests)["Ingress"]["spec"]["rules"][0]["http"]["paths"] for manifests in (rendered[1], rendered[3])
    )

    assert [(each["path"], each["pathType"]) for each in below] == [("/gateway/", "Prefix")]
    assert [(each["path"], each["pathType"]) for each in root] == [("/", "Prefix")]


def test_a_pod_has_time_to_drain_and_one_is_disrupted_at_once(rendered) -> None:
    kinds = by_kind(rendered[1])
    pod = kinds["Deployment"]["spec"]["template"]["spec"]

    assert pod["terminationGracePeriodSeconds"] == 7 + 20 + 15
    assert kinds["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert kinds["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    probes = {
        name: pod["containers"][0][f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")
    }
    assert probes == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


def test_every_selector_matches_the_pods_of_the_server(rendered) -> None:
    kinds = by_kind(rendered[1])
    server = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    job = kinds["Job"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        kinds["Deployment"]["spec"]["selector"]["matchLabels"],
        kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        kinds["Service"]["spec"]["selector"],
    ]
    both = kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]

    for selector in selectors:
        assert selector.items() <= server.items()
        assert not selector.items() <= job.items()
    assert both.items() <= server.items() & job.items()
    assert (
        kinds["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
        <= kinds["Service"]["metadata"]["labels"].items()
    )


def test_migrations_run_as_a_job_before_each_release(rendered) -> None:
    job = by_kind(rendered[0])["Job"]

    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["migrate"]


def test_only_the_migrations_have_the_password_of_the_owner(rendered) -> None:
    job, server = (json.dumps(by_kind(rendered[0])[kind]) for kind in ("Job", "Deployment"))

    assert "GATEWAY_DATABASE_OWNER_URL" in job
    assert "GATEWAY_DATABASE_OWNER_URL" not in server


def test_alerts_name_metrics_of_the_gateway(rendered) -> None:
    nothing = EventStatus(waiting=0, oldest_seconds=0, position=0, unsettled=0, pruned=0, sinks=())
    families = [*REGISTRY.collect(), *from_database(nothing, None, is_up=True)]
    metrics = {f"{each.name}_total" if each.type == "counter" else each.name for each in families}
    rules = by_kind(rendered[1])["PrometheusRule"]["spec"]["groups"][0]["rules"]

    for rule in rules:
        assert [name for name in metrics if name in rule["expr"]], rule["expr"]


@pytest.mark.parametrize("case", REFUSED)
def test_incomplete_or_misspelt_values_are_refused(rendered, case: str) -> None:
    message = rendered[4 + list(REFUSED).index(case)]

    assert isinstance(message, str)
    assert REFUSED[case][1] in message


def test_the_chart_knows_every_secret_setting_and_the_version() -> None:
    secret = {
        PREFIX + name.upper()
        for name, field in Settings.model_fields.items()
        if SecretStr in (field.annotation, *get_args(field.annotation))
    } | {"GATEWAY_WEBHOOKS"}
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert secret <= set(schema["settings"]["propertyNames"]["not"]["enum"])
    of_database = {"GATEWAY_DATABASE_URL", "GATEWAY_DATABASE_OWNER_URL"}
    assert set(schema["secrets"]["items"]["properties"]["setting"]["enum"]) == secret - of_database
    assert chart["appVersion"] == chart["version"] == version
