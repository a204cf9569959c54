"""`gateway check`: print the settings in force, and the problems that `gateway serve` would have with them."""

import asyncio
from collections.abc import Callable

from gateway.database.migrate import revisions
from gateway.database.replicas import replica_problems
from gateway.embedded_postgres.cluster import refuse_folder
from gateway.preflight import ask_provider, preflight
from gateway.server import bind_socket, refuse_what_cannot_be_served
from gateway.settings import PREFIX, Settings, SettingsError


def check(settings: Settings) -> int:
    """Print the settings in force and their problems. Change and start nothing.

    Return the exit code: 1 if `serve` would fail, or would refuse callers because the identity provider does not
    answer.
    """
    print("\n".join(settings.assignments()))
    if settings.development:
        print("\nDevelopment mode: well-known tokens, loopback only.")
    if settings.public_url:
        print(f"\nClients use {settings.public_origin}{settings.public_path}/.")
    # Run every step, so that all problems are printed at once; `serve` stops at the first.
    steps: list[Callable[[Settings], bool]] = [_check_documents, _check_port, _check_database, _check_replicas]
    passed = [_passes(step, settings) for step in steps]
    return 0 if all(passed) else 1


def _passes(step: Callable[[Settings], bool], settings: Settings) -> bool:
    try:
        return step(settings)
    except SettingsError as error:
        print(f"\n{error}")
        return False


def _check_documents(settings: Settings) -> bool:
    refuse_what_cannot_be_served(settings)
    if settings.documents:
        print(f"\nThe trusted documents can be served (policy: {settings.documents_policy}).")
    return True


def _check_port(settings: Settings) -> bool:
    bind_socket(settings).close()
    return True


def _check_database(settings: Settings) -> bool:
    if settings.database_url is None:
        refuse_folder(settings.data_dir)
        print(f"\nNo {PREFIX}DATABASE_URL: a private PostgreSQL will be started under {settings.data_dir}.")
        outages, discovered = asyncio.run(ask_provider(settings))
        for sentence in (*(f"outage: {each}" for each in outages), *discovered):
            print(f"\n{sentence}")
        return not outages
    result = asyncio.run(preflight(settings, lambda sentence: print(f"\n{sentence}"), changing=False))
    for sentence in result.facts:
        print(f"\n{sentence}")
    if result.is_migrated:
        print("\nThe database is ready to be served.")
    else:
        print(f"\nThe database must be migrated to {revisions()[-1]}; `gateway serve` and `gateway migrate` do that.")
    return result.serves_all_callers


def _check_replicas(settings: Settings) -> bool:
    """Print whether each replica would be read. The gateway serves without them."""
    if settings.database_url is None or not settings.read_urls:
        return True
    url, max_lag_seconds = settings.serving_url, settings.database_read_lag_seconds
    problems = asyncio.run(replica_problems(url, settings.read_urls, max_lag_seconds))
    for name, problem in problems.items():
        print(f"\nThe replica {name} " + (f"is left out: it {problem}." if problem else "is read from."))
    return True
