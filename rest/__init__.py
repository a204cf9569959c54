"""The REST door: a thin shim over the same functions as the GraphQL door. Its routes, nothing hidden."""

from starlette.routing import Route

from rest.encounters import PatientEncounters
from rest.health import healthz, readyz
from rest.openapi import openapi_document

PATIENT_ENCOUNTERS = "/v1/patients/{patient_id}/encounters"

routes = [
    Route(PATIENT_ENCOUNTERS, PatientEncounters),
    Route("/openapi.json", openapi_document),
    Route("/healthz", healthz),
    Route("/readyz", readyz),
]
