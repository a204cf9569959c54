"""What `gateway check` says: the settings in force, and whether the database can and should be served from."""

import asyncio
from pathlib import Path

import asyncpg

from gateway.account import PostgresUnavailable
from gateway.app import create_app
from gateway.http_client import refuse_unusable_proxies
from gateway.postgres import refuse_folder
from gateway.safety import examine
from gateway.settings import PREFIX, Settings, SettingsError


def check(settings: Settings) -> int:
    """Print what is in force and what is wrong. Gives the exit code: 1 where the gateway would refuse to serve."""
    print("\n".join(f"{name}={value}" for name, value in settings.shown().items()))
    if settings.development:
        print("\nDevelopment mode: well-known tokens, loopback only.")
    refuse_unusable_proxies(settings)
    documents = _check_documents(settings) if settings.documents else 0
    if settings.database_url is None:
        return _check_folder(settings.data_dir) or documents
    return _check_database(settings.database_url.get_secret_value()) or documents


def _check_documents(settings: Settings) -> int:
    try:
        create_app(settings)
    except SettingsError as error:
        print(f"\n{error}")
        return 1
    print(f"\nThe trusted documents can be served (policy: {settings.documents_policy}).")
    return 0


def _check_folder(data_dir: Path) -> int:
    try:
        refuse_folder(data_dir)
    except (PostgresUnavailable, OSError) as error:
        print(f"\nNo {PREFIX}DATABASE_URL, and no private PostgreSQL can be started: {error}")
        return 1
    print(f"\nNo {PREFIX}DATABASE_URL: a private PostgreSQL will be started under {data_dir}.")
    return 0


def _check_database(database_url: str) -> int:
    try:
        dangers, warnings = asyncio.run(examine(database_url))
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        print(f"\n{PREFIX}DATABASE_URL: the database does not let us in ({type(error).__name__}).")
        print("Is it reachable, migrated (`gateway migrate`), and may the login act as gateway_app?")
        return 1
    for danger in dangers:
        print(f"\ndanger: {danger}")
    for warning in warnings:
        print(f"\nwarning: {warning}")
    print("\nThe database can be served from." if not dangers else "\nThe gateway would refuse to serve from it.")
    return 1 if dangers else 0
