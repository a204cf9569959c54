"""The prose and the examples of the OpenAPI description."""

from collections.abc import Mapping

from models import MEMBERS
from resolvers import errors
from resolvers.errors import GatewayError, Shape, Violation
from rest.content_negotiation import JSON
from rest.responses import LINK

REFUSALS: Mapping[int, str] = {
    400: "What was sent breaks a rule; `violations` says which member and which rule.",
    401: "No bearer token came, or one that is worth nothing.",
    403: "The caller may not do this, or not for this brand.",
    404: "Patient not found",
    405: "This method is not served here.",
    406: "The client takes none of the media types that are spoken here.",
    408: "The body did not arrive in time.",
    409: "The idempotency key stands for another request.",
    413: "The body is larger than this gateway reads.",
    415: "The body is not JSON in UTF-8, or it is compressed.",
    429: "The caller asks too often.",
    500: "Internal error",
    503: "The gateway cannot answer just now; `recorded` says whether the encounter may have been kept.",
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
    "X-Request-Id": ("The request's id: in our log, the audit log and every refusal too.", REQUEST_ID),
    "Link": ("Where this door is described; on a refusal, also where its code and each rule are explained.", LINK),
    "Location": ("The path under which the encounter is shown.", f"/v1/patients/demo-patient/encounters/{REQUEST_ID}"),
    "ETag": ("Names this state of what is shown; good for `If-None-Match`.", '"1"'),
    "Idempotent-Replayed": ("`true` where the encounter had been recorded earlier, under the same key.", "true"),
    "X-Ignored": (
        "Names in the request that are not known here and were ignored; last, how many more are not repeated.",
        "note, status, 2",
    ),
    "Preference-Applied": ("How unknown names were handled, where `Prefer` asks for one way.", "handling=strict"),
    "WWW-Authenticate": (
        "The challenge, as RFC 6750 has it; with 403, the scopes that would do.",
        'Bearer error="insufficient_scope", scope="write:encounters"',
    ),
    "Allow": ("The methods that are served here.", "GET, HEAD, OPTIONS, POST"),
    "Accept": ("The media type that is read here.", JSON),
    "Accept-Encoding": ("How a body may be coded: not at all.", "identity"),
    "Retry-After": ("When to come back, in seconds.", "1"),
    "X-RateLimit-Remaining": (
        "How many reads, or writes, the client has left of those it may make in a minute.",
        "199",
    ),
    "X-RateLimit-Reset": ("When there will be more, in seconds since 1970.", "1798761600"),
    "RateLimit-Policy": (
        'What is allowed: `"writes";q=200;w=60` is 200 writes in any 60 seconds.',
        '"writes";q=200;w=60',
    ),
    "RateLimit": ('What is left: `"writes";r=199;t=60` is 199 now, and more in 60 seconds.', '"writes";r=199;t=60'),
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
