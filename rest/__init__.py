"""The REST door: a thin layer over the same functions as the GraphQL door, and the complete list of its routes."""

from starlette.routing import Route

from rest.encounters import PATIENT_ENCOUNTER, PATIENT_ENCOUNTERS, get_encounter, get_encounters, post_encounter
from rest.health import healthz, readyz
from rest.openapi import openapi_document
from rest.problem_pages import problem, rule
from rest.resource import Resource

routes = [
    Route(PATIENT_ENCOUNTERS, Resource(get=get_encounters, post=post_encounter)),
    Route(PATIENT_ENCOUNTER, Resource(get=get_encounter)),
    Route("/problems/{code}", problem),
    Route("/rules/{rule}", rule),
    Route("/openapi.json", openapi_document),
    Route("/healthz", healthz),
    Route("/readyz", readyz),
]
