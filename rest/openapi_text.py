"""The prose and the examples of the OpenAPI description."""

from collections.abc import Mapping

from models import MEMBERS
from resolvers import errors
from resolvers.errors import GatewayError, Shape, Violation
from rest.content_negotiation import JSON
from rest.responses import LINK

REFUSALS: Mapping[int, str] = {
    400: "The input breaks a rule; `violations` names each member and rule.",
    401: "The bearer token is missing or invalid.",
    403: "The caller may not perform this operation, or not for this brand.",
    404: "Patient not found",
    405: "The path does not support this method.",
    406: "None of the requested media types is supported.",
    408: "The body did not arrive in time.",
    409: "The idempotency key was used for another request.",
    413: "The body exceeds the maximum size.",
    415: "The body is not JSON in UTF-8, or it is compressed.",
    429: "The client has exceeded its rate limit.",
    500: "Internal error",
    503: "The gateway is temporarily unavailable; `recorded` reports whether the encounter may have been recorded.",
}

ABOUT_A_BODY = {408, 409, 413, 415}

EXAMPLES: tuple[GatewayError, ...] = (
    errors.InvalidInput(
        [
            Violation(
                "/chief_complaint",
                "too_long",
                "must have at most 2000 characters",
                maximum=2000,
                received=Shape("string", 2001),
            ),
            Violation(
                "/scheduled_at", "offset", "must end in an offset such as Z or +01:00", received=Shape("string", 19)
            ),
        ]
    ),
    errors.InvalidToken(),
    errors.InsufficientScope(["write:encounters"]),
    errors.PatientNotFound(),
    errors.MethodNotAllowed(["GET", "HEAD", "OPTIONS", "POST"]),
    errors.NotAcceptable(),
    errors.RequestTimeout(),
    errors.IdempotencyKeyReused(),
    errors.PayloadTooLarge(),
    errors.UnsupportedMediaType(),
    errors.RateLimited(1.5),
    errors.ServerError(),
    errors.OutcomeUnknown(),
)
"""An error of each status, shown as an example answer."""

REQUEST_ID = "0b6c1e0e-8f5e-4a53-9d0a-2f6f1f3f9d11"

HEADERS: Mapping[str, tuple[str, str]] = {
    "X-Request-Id": ("The request's id, as in the log, the audit log and every refusal.", REQUEST_ID),
    "Link": (
        "The description of this API; on a refusal, also the explanations of its code and of each rule.",
        LINK,
    ),
    "Location": ("The path of the encounter.", f"/v1/patients/demo-patient/encounters/{REQUEST_ID}"),
    "ETag": ("Entity tag of this state of the representation, for `If-None-Match`.", '"1"'),
    "Idempotent-Replayed": ("`true` if the encounter was recorded earlier under the same key.", "true"),
    "X-Ignored": (
        "Unknown names in the request, which were ignored; last, the number of those that are not repeated.",
        "note, status, 2",
    ),
    "Preference-Applied": ("The applied handling of unknown names, if `Prefer` requests one.", "handling=strict"),
    "WWW-Authenticate": (
        "The challenge of RFC 6750; with 403, the sufficient scopes.",
        'Bearer error="insufficient_scope", scope="write:encounters"',
    ),
    "Allow": ("The methods that the path supports.", "GET, HEAD, OPTIONS, POST"),
    "Accept": ("The supported media type of the body.", JSON),
    "Accept-Encoding": ("The supported content coding of the body: none.", "identity"),
    "Retry-After": ("The time to wait before the next attempt, in seconds.", "1"),
    "X-RateLimit-Remaining": (
        "Number of reads, or of writes, that the client may still make now.",
        "199",
    ),
    "X-RateLimit-Reset": ("The time when more will be available, in seconds since 1970.", "1798761600"),
    "RateLimit-Policy": (
        'The limit: `"writes";q=200;w=60` is 200 writes in any 60 seconds.',
        '"writes";q=200;w=60',
    ),
    "RateLimit": ('The remainder: `"writes";r=199;t=60` is 199 now, and more in 60 seconds.', '"writes";r=199;t=60'),
}
"""Every response header, with an example."""

ALWAYS = ("X-Request-Id", "Link")
PREFERENCES = ("X-Ignored", "Preference-Applied")
"""On every answer to a request with an ignored name, or with a preference for the handling of such names."""

SIGNED_IN = ("X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit-Policy", "RateLimit")
"""On every answer to an authenticated caller, unless the kind is unlimited."""

HEADERS_OF: Mapping[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",),
    403: ("WWW-Authenticate",),
    405: ("Allow",),
    415: ("Accept", "Accept-Encoding"),
    429: ("Retry-After",),
    503: ("Retry-After",),
}

EXAMPLE = {name: member.example for name, member in MEMBERS.items() if member.published}
"""An encounter, as an example answer."""
