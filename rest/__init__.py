"""The REST door: a thin layer over the same functions as the GraphQL door, and the complete list of its routes."""

from collections.abc import Mapping
from typing import Any

from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.routing import Route

from resolvers.errors import GatewayError
from rest.encounters import PATIENT_ENCOUNTER, PATIENT_ENCOUNTERS, get_encounter, get_encounters, post_encounter
from rest.errors import refusal_response, routing_error_response
from rest.health import healthz, readyz
from rest.openapi import openapi_document
from rest.problem_pages import problem, rule


class PatientEncounters(HTTPEndpoint):
    """The encounters of a patient."""

    get = staticmethod(get_encounters)
    post = staticmethod(post_encounter)


class PatientEncounter(HTTPEndpoint):
    """An encounter of a patient."""

    get = staticmethod(get_encounter)


routes = [
    Route(PATIENT_ENCOUNTERS, PatientEncounters),
    Route(PATIENT_ENCOUNTER, PatientEncounter),
    Route("/problems/{code}", problem),
    Route("/rules/{rule}", rule),
    Route("/openapi.json", openapi_document),
    Route("/healthz", healthz),
    Route("/readyz", readyz),
]

exception_handlers: Mapping[Any, Any] = {GatewayError: refusal_response, HTTPException: routing_error_response}
