"""Render the Helm chart with values from standard input, a JSON list, and validate it by the schemas of Kubernetes.

Prints a JSON list with the manifests of each values. It runs in `.venv/deploy`, which has Helm's own template engine.
Arguments: the versions of Kubernetes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml

CHART = Path(__file__).parents[2] / "deploy/helm/encounter-gateway"
OF_PROMETHEUS = {"ServiceMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator, which the schemas of Kubernetes do not have."""


def rendered(values: dict[str, Any], versions: list[str]) -> list[dict[str, Any]] | str:
    """Return the manifests, or the message of Helm that refuses the values. Raises if a manifest is invalid."""
    with helm_python.Chart.load(CHART) as chart:
        try:
            chart.validate_schema(values)
            texts = chart.render(values, name="demo", namespace="clinic")
        except helm_python.HelmError as error:
            return str(error)
    manifests = [
        manifest
        for name, text in texts.items()
        if name.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest is not None
    ]
    for manifest in manifests:
        if manifest["kind"] not in OF_PROMETHEUS:
            for version in versions:
                kubernetes_validate.validate(manifest, version, strict=True)
    return manifests


if __name__ == "__main__":
    problems = helm_python.lint(str(CHART))["errors"]
    assert not problems, problems
    json.dump([rendered(values, sys.argv[1:]) for values in json.load(sys.stdin)], sys.stdout)
