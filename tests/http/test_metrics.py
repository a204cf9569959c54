"""`GET /metrics`: authorization, and the content of samples and labels."""

from collections.abc import AsyncIterator
from uuid import uuid4

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.settings import Settings
from resolvers.access import Caller
from resolvers.errors import InvalidToken
from tests.cast import Cast
from tests.conftest import fresh_database
from tests.doors import Door, Service
from tests.event_helpers import rows
from tests.gateways import DEV, PATH, VISIT, client, gateways
from tests.tcp_proxy import TcpProxy
from tests.waiting import wait_until

CALLERS = {
    "prometheus": Caller("prometheus", frozenset({"read:metrics"})),  # of no brand
    "clinic": Caller("clinic", frozenset({"manage:encounters"}), brand_id="loop"),
}

Numbers = dict[str, float]


def numbers(response: httpx2.Response) -> Numbers:
    """Return the value of every sample by its name and labels."""
    assert response.status_code == 200, response.text
    return {
        name + "".join(f" {label}={text}" for label, text in sorted(labels.items())): value
        for family in text_string_to_metric_families(response.text)
        for name, labels, value, *_ in family.samples
    }


@pytest.fixture
async def watched(database_url: str) -> AsyncIterator[Service]:
    """A service with a monitoring client and a clinic."""

    async def verify(token: str) -> Caller:
        if token not in CALLERS:
            raise InvalidToken
        return CALLERS[token]

    settings = Settings(database_url=database_url, database_acquire_seconds=30, rate_reads_per_minute=4)
    async with Service.running(settings, verify) as running:
        yield running


async def test_metrics_check_authentication_then_authorization(watched: Service) -> None:
    answers = [await watched.rest("GET", "/metrics", token=token) for token in (None, "nobody", "clinic", "prometheus")]
    for _ in range(3):
        await watched.rest("GET", "/metrics", token="prometheus")
    too_often = await watched.rest("GET", "/metrics", token="prometheus")
    posted = await watched.rest("POST", "/metrics", token="prometheus")

    assert [answer.status_code for answer in answers] == [401, 401, 403, 200]
    assert 'scope="read:metrics"' in answers[2].headers["www-authenticate"]
    assert (too_often.status_code, too_often.json()["error"]) == (429, "rate_limited")
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_a_scrape_is_not_audited_as_a_read(watched: Service, cast: Cast) -> None:
    response = await watched.rest("GET", "/metrics", token="prometheus", headers={"x-request-id": "the-scrape"})
    refused = await watched.rest("GET", "/metrics", token="clinic", headers={"x-request-id": "the-attempt"})

    # Entries are written in order: an entry of the scrape would precede that of the refusal.
    async def audited() -> list[str]:
        of_both = "SELECT request_id FROM patient_graph.audit_log WHERE request_id IN ('the-scrape', 'the-attempt')"
        return [row["request_id"] for row in await cast.connection.fetch(of_both)]

    await wait_until(audited)
    assert (response.status_code, refused.status_code) == (200, 403)
    assert await audited() == ["the-attempt"]


async def test_requests_at_either_door_are_counted(service: Service, door: Door, cast: Cast) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    before = numbers(await service.rest("GET", "/metrics"))

    await door.record(patient_id, VISIT, key=key)
    await door.record(patient_id, VISIT, key=key)
    await door.record("nobody", VISIT)
    await door.record(patient_id, VISIT, token="bad")

    after = numbers(await service.rest("GET", "/metrics"))
    grown = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    assert grown["gateway_encounters_recorded_total"] == 1
    assert grown["gateway_encounters_replayed_total"] == 1
    assert grown["gateway_refusals_total code=not_found"] == 1
    assert grown["gateway_refusals_total code=invalid_token"] == 1
    name, path = ("rest", "/v1/patients/{patient_id}/encounters") if "Rest" in repr(door) else ("graphql", "/graphql")
    request = f"door={name} method=POST route={path}"
    counted = {
        each: value for each, value in grown.items() if each.startswith("gateway_requests_total") and path in each
    }
    assert sum(counted.values()) == 4
    assert counted[f"gateway_requests_total {request} status=401"] == 1
    assert grown[f"gateway_request_seconds_count {request}"] == 4
    assert after["gateway_database_up"] == 1
    assert after["gateway_pool_in_use pool=requests"] == 0
    assert after["gateway_events_position"] >= 0


async def test_no_label_contains_text_of_a_client(service: Service, cast: Cast) -> None:
    mark = f"mark{uuid4().hex}"
    await cast.connection.execute("INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loop')", mark)
    visit = VISIT | {"notes": mark, "metadata": {mark: mark}}
    for path in (f"/v1/patients/{mark}/encounters", f"/{mark}", f"/v1/patients/{mark}"):
        for method in ("POST", "GET", "PUT", mark.upper()):
            headers = {"idempotency-key": mark, "x-request-id": mark}
            await service.rest(method, path, json=visit, headers=headers)
    await service.graphql(f'{{ patient(id: "{mark}") {{ id }} {mark} }}')
    await service.rest("GET", "/metrics", token=mark)

    samples = (await service.rest("GET", "/metrics")).text

    assert await cast.count("encounters", mark) == 1
    assert mark not in samples.lower()
    assert "demo-patient" not in samples


async def test_a_scrape_is_answered_while_the_database_is_unavailable(database_url: str) -> None:
    async with (
        TcpProxy.to(database_url) as (proxy, near_url),
        Service.running(Settings(database_url=near_url)) as service,
    ):
        proxy.refuse_connections, proxy.before = True, lambda _: True
        away = numbers(await service.rest("GET", "/metrics"))
        proxy.restore()

    assert away["gateway_database_up"] == 0
    assert "gateway_events_waiting" not in away
    assert "gateway_pool_connections pool=requests" in away


async def test_sinks_are_reported_by_name(server_url: str) -> None:
    url = await fresh_database(server_url)
    await rows(url, "INSERT INTO gateway.sinks (name, position, failures) VALUES ('hospital', 0, 3)")
    async with Service.running(Settings(database_url=url)) as service:
        samples = numbers(await service.rest("GET", "/metrics"))

    assert samples["gateway_sink_failures sink=hospital"] == 3
    assert samples["gateway_sink_disabled sink=hospital"] == 0


async def test_any_worker_reports_the_metrics_of_all_workers(server_url: str) -> None:
    url = await fresh_database(server_url)
    async with gateways(url, GATEWAY_WORKERS="2") as (gateway,):

        async def both_have_opened_their_pools() -> bool:
            async with client() as http:
                samples = numbers(await http.get(gateway.origin + "/metrics", headers=DEV))
            return samples["gateway_pool_connections pool=requests"] == 20

        await wait_until(both_have_opened_their_pools)
        for _ in range(20):
            # A connection for each request, so that both workers get some.
            async with client() as http:
                assert (await http.post(gateway.origin + PATH, json=VISIT, headers=DEV)).status_code == 201
        samples = []
        for _ in range(6):
            async with client() as http:
                samples.append(numbers(await http.get(gateway.origin + "/metrics", headers=DEV)))

    assert {each["gateway_encounters_recorded_total"] for each in samples} == {20}
    assert {each["gateway_pool_connections pool=requests"] for each in samples} == {20}  # ten for each
