"""The REST door: a thin layer over the same functions as the GraphQL door, and the complete list of its routes."""

from starlette.routing import Route

from rest.encounters import get_encounter, get_encounters, post_encounter
from rest.health import healthz, readyz
from rest.openapi import openapi_document
from rest.problem_pages import problem, rule
from rest.resource import Resource

PATIENT_ENCOUNTERS = "/v1/patients/{patient_id}/encounters"
PATIENT_ENCOUNTER = PATIENT_ENCOUNTERS + "/{encounter_id}"

routes = [
    Route(PATIENT_ENCOUNTERS, Resource(get=get_encounters, post=post_encounter)),
    Route(PATIENT_ENCOUNTER, Resource(get=get_encounter)),
    Route("/problems/{code}", problem),
    Route("/rules/{rule}", rule),
    Route("/openapi.json", openapi_document),
    Route("/healthz", healthz),
    Route("/readyz", readyz),
]
