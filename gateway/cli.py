"""Command-line interface."""

import asyncio
import gc
import getpass
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from pydantic import SecretStr

from gateway import environment
from gateway.settings import PREFIX, Settings, SettingsError

Result = TypeVar("Result")


def examples(*lines: str) -> str:
    """Return the end of a command's help: commands to copy, one a line."""
    return "\n".join(["Examples:\n\n\b", *(f"  {line}" for line in lines)])


@click.group(epilog=examples("gateway serve", "gateway check"))
@click.version_option(package_name="encounter-gateway", prog_name="gateway", message="%(prog)s %(version)s")
def app() -> None:
    """The encounter gateway."""


@app.group(epilog=examples("gateway patients import patients.csv"))
def patients() -> None:
    """Patients."""


@app.group(epilog=examples("gateway encounters import visits.csv"))
def encounters() -> None:
    """Encounters."""


@app.group(epilog=examples("gateway audit verify"))
def audit() -> None:
    """The audit log."""


@app.group(epilog=examples("gateway database upgrade --programs /usr/bin"))
def database() -> None:
    """The private PostgreSQL."""


@app.group(epilog=examples("gateway events status", "gateway events replay --sink webhook"))
def events() -> None:
    """The delivery of events."""


def main() -> None:
    """Run a command. Print a `SettingsError` as one sentence, without a traceback."""
    # Exit on both signals, so that `finally` blocks run. A command that was interrupted has failed.
    _handle_signals(lambda number, _: sys.exit(128 + number))
    try:
        app()
    except SettingsError as error:
        sys.exit(f"gateway: {error}")
    finally:
        # Otherwise the interpreter would trace all imported objects at its end: 0.2 s, a fifth of a short command.
        gc.freeze()


# Imports and exports restore the default action, which kills them at once: they can be resumed. A handler that raises
# may interrupt a callback of a library, which ignores the exception.
def _handle_signals(handler: signal.Handlers | Callable[[int, Any], NoReturn]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


@app.command(epilog=examples("gateway serve", "GATEWAY_PORT=9000 gateway serve --faults 1"))
@click.option(
    "--faults", type=int, metavar="SEED", help="Inject faults into requests, to test clients; in development mode only."
)
def serve(faults: int | None) -> None:
    """Serve REST and GraphQL. Without a configured database, start a private PostgreSQL."""
    # A signal is how a server ends, so `make` reports no error.
    _handle_signals(lambda *_: sys.exit(0))
    # Wrong settings are reported before the modules of the server are imported.
    settings = _settings()
    from gateway.server import bind_socket, refuse_what_cannot_be_served, serve

    refuse_what_cannot_be_served(settings, faults)
    # The port is bound first: if another gateway uses it, no database is started in vain.
    with bind_socket(settings) as port, _database(settings) as settings:
        serve(settings, port, faults)


@app.command(epilog=examples("gateway migrate"))
def migrate() -> None:
    """Migrate the database to the newest revision. Several processes may do so concurrently."""
    from gateway.database.migrate import migrate
    from gateway.database.problems import translate_driver_errors

    with _database() as settings, translate_driver_errors(settings.owner_variable):
        _run(migrate(settings.owner_url))


@database.command("upgrade", epilog=examples("gateway database upgrade --programs /usr/bin"))
@click.option(
    "--programs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of the programs (`postgres`) of the version that made the data.",
)
def upgrade_database(programs: Path) -> None:
    """Copy the data of an earlier PostgreSQL to this version. The earlier data stay."""
    from gateway.database.embedded_upgrade import upgrade
    from gateway.embedded_postgres.os_account import PostgresUnavailable

    try:
        earlier = upgrade(_settings().data_dir, programs)
    except PostgresUnavailable as error:
        raise SettingsError(str(error)) from error
    click.echo(f"Every table was copied and compared. {earlier} is not used any more: remove it after a backup.")


@app.command(epilog=examples("gateway check", "gateway check > settings-in-force.env"))
def check() -> None:
    """Check the settings and the database; print the settings in force and each problem."""
    from gateway.check import check
    from gateway.observability.logs import configure_logging

    configure_logging()
    sys.exit(check(_settings()))


@app.command("leak-check", epilog=examples("gateway leak-check"))
def leak_check() -> None:
    """Send marked values to a temporary gateway, and search its outputs for leaks.

    Exit code 1 if there is a leak.
    """
    from gateway.leak_check import leak_check

    sys.exit(_run(leak_check()))


# The earlier name of the command, which `gateway --help` does not list.
app.add_command(
    click.Command("canary", callback=leak_check.callback, help=leak_check.help, epilog=leak_check.epilog, hidden=True)
)


FILE = click.Path(path_type=Path)

rejecting = click.option(
    "--rejects",
    type=FILE,
    help="JSON Lines file for refused lines, with number, rules and reason. Default: FILE.rejects.jsonl.",
)


@patients.command(
    "import",
    epilog=examples(
        "gateway patients import patients.csv", "gateway patients import - --rejects refused.jsonl < patients.jsonl"
    ),
)
@click.argument("file", type=FILE)
@rejecting
def import_patients(file: Path, rejects: Path | None) -> None:
    """Register patients. Registered patients stay unchanged. The exit code is 1 if a line was refused.

    FILE is CSV or JSON Lines with `id` and `brand_id`; - for standard input.
    """
    from gateway.importers.patients import import_patients

    with _importing() as settings:
        imported = _run(import_patients(settings.owner_url, file, rejects))
    click.echo(imported)
    sys.exit(1 if imported.refused else 0)


@patients.command(
    "erase",
    epilog=examples(
        "gateway patients erase patient-7 --brand loop",
        "gateway patients erase patient-7 --brand loop --yes --rewrite",
    ),
)
@click.argument("patient_id", metavar="ID")
@click.option("--brand", "brand_id", required=True, help="Brand of the patient.")
@click.option("--yes", is_flag=True, help="Erase. Without it, the command prints what it would erase.")
@click.option(
    "--rewrite",
    is_flag=True,
    help="Also remove the erased text from the database's files. Locks each table while it is rewritten.",
)
@click.option("--actor", help="Person whom the audit log names. Default: the account that runs the command.")
def erase_patient(patient_id: str, *, brand_id: str, yes: bool, rewrite: bool, actor: str | None) -> None:
    """Erase a patient with all encounters, versions, reasons, events and stored answers.

    The audit log stays. The exit code is 1 if rows are left, or if the rest could not be done.
    """
    from gateway import erasing

    actor = actor or _account()
    if not actor.isprintable() or not 0 < len(actor) <= 128:
        raise click.BadParameter("1 to 128 visible characters", param_hint="--actor")
    with _database() as settings:
        try:
            if not yes:
                if _run(erasing.show_rows(settings.owner_url, patient_id, brand_id, click.echo)):
                    sys.exit("gateway: nothing was erased; repeat the command with --yes to erase these rows")
                return
            _run(erasing.erase(settings.owner_url, patient_id, brand_id, actor, click.echo))
            click.echo("Erased. Nothing about the patient is left in the tables, except in the audit log.")
            if rewrite:
                _run(erasing.rewrite(settings.owner_url, click.echo))
                click.echo("The database's files contain no erased text. Backups and replicas: docs/erasing.md.")
            else:
                _run(erasing.vacuum(settings.owner_url))
                click.echo(
                    "The database's files contain erased text until PostgreSQL overwrites it: see --rewrite and "
                    "docs/erasing.md."
                )
        except erasing.ErasureStopped as error:
            sys.exit(f"gateway: {error}")


def _account() -> str:
    """Return the name of the account that runs the command."""
    from getpass import getuser

    try:
        return getuser()
    except (KeyError, OSError, ImportError):
        raise click.BadParameter("the account has no name: give one", param_hint="--actor") from None


@encounters.command(
    "import",
    epilog=examples(
        "gateway encounters import visits.csv",
        "gateway encounters import visits.jsonl --name archive-2025 --client archive",
    ),
)
@click.argument("file", type=FILE)
@rejecting
@click.option(
    "--name",
    help="Name of the import; a line without a `key` is recorded once for each name. "
    "Default: the file's name without its folder.",
)
@click.option(
    "--client",
    default="import",
    show_default=True,
    help="Client id that owns the keys and that the audit log names; 1 to 128 visible characters.",
)
@click.option(
    "--keep-keys-days",
    type=click.IntRange(1, 3650),
    default=90,
    show_default=True,
    help="Days that the keys are stored. An import that is repeated later records all lines again.",
)
@click.option(
    "--patience-seconds",
    "retry_seconds",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds that the database may be unavailable before the import stops.",
)
@click.option(
    "--restore",
    is_flag=True,
    help="FILE is an export: keep its ids, times of recording and versions. Its encounters need no keys.",
)
def import_encounters(
    file: Path,
    rejects: Path | None,
    *,
    name: str | None,
    client: str,
    keep_keys_days: int,
    retry_seconds: float,
    restore: bool,
) -> None:
    """Record encounters, each line once even if the import is repeated. The exit code is 1 if a line was refused.

    FILE is CSV or JSON Lines with `patient_id`, `brand_id`, `encounter_type` and the other members; - for standard
    input.
    """
    if not client.isprintable() or not 0 < len(client) <= 128:
        raise click.BadParameter("1 to 128 visible characters", param_hint="--client")
    from gateway.importers.encounters import import_encounters

    with _importing() as settings:
        done = _run(
            import_encounters(
                settings,
                file,
                rejects=rejects,
                name=name,
                client=client,
                keep_keys_days=keep_keys_days,
                retry_seconds=retry_seconds,
                restore=restore,
            )
        )
    click.echo(done)
    sys.exit(1 if done.refused else 0)


exporting_brand = click.option("--brand", "brand_id", required=True, help="The brand to export.")
exporting_force = click.option("--force", is_flag=True, help="Replace FILE, and an interrupted export of it.")
exporting_actor = click.option(
    "--actor", help="Person or program whom the audit log names. Default: the operating system's user."
)


@patients.command("export", epilog=examples("gateway patients export patients.jsonl --brand loop"))
@click.argument("file", type=FILE)
@exporting_brand
@exporting_force
@exporting_actor
def export_patients(file: Path, brand_id: str, actor: str | None, *, force: bool) -> None:
    """Export the patients of a brand with their external ids, for `gateway patients import`.

    FILE is JSON Lines; - for standard output. It appears when it is complete, and only its owner may read it.
    """
    if file.suffix.lower() == ".csv":
        raise click.BadParameter("patients are exported as JSON Lines only", param_hint="FILE")
    from gateway.exporters.patients import export_patients

    with _exporting(file) as (settings, finish):
        finish(_run(export_patients(settings, file, brand_id=brand_id, actor=_actor(actor), force=force)))


@encounters.command(
    "export",
    epilog=examples(
        "gateway encounters export encounters.jsonl --brand loop --resume",
        "gateway encounters export - --brand loop --format csv > encounters.csv",
    ),
)
@click.argument("file", type=FILE)
@exporting_brand
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["jsonl", "csv"]),
    help="Format of FILE. Default: that of its suffix (.jsonl, .ndjson, .csv); jsonl for standard output.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue an interrupted export of FILE. Without one, begin: a retry may always have it.",
)
@exporting_force
@exporting_actor
def export_encounters(
    file: Path, brand_id: str, file_format: str | None, actor: str | None, *, resume: bool, force: bool
) -> None:
    """Export the encounters of a brand as of one instant, for `gateway encounters import --restore`.

    FILE is JSON Lines or CSV; - for standard output. It appears when it is complete, and only its owner may read it.
    """
    if resume and file == Path("-"):
        raise click.BadParameter("standard output cannot be resumed; name a file", param_hint="--resume")
    suffixes = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"} | ({"": "jsonl"} if file == Path("-") else {})
    file_format = file_format or suffixes.get(file.suffix.lower())
    if file_format is None:
        raise click.BadParameter("is required, because the suffix of FILE names no format", param_hint="--format")
    from gateway.exporters.encounters import export_encounters

    with _exporting(file) as (settings, finish):
        finish(
            _run(
                export_encounters(
                    settings,
                    file,
                    brand_id=brand_id,
                    file_format="csv" if file_format == "csv" else "jsonl",
                    actor=_actor(actor),
                    resume=resume,
                    force=force,
                )
            )
        )


def _actor(actor: str | None) -> str:
    """Return the actor of an export: the given one, or the user of the process."""
    if actor is None:
        try:
            return getpass.getuser()
        except (KeyError, OSError):
            return f"uid {os.getuid()}"
    if not actor.isprintable() or not 0 < len(actor) <= 128:
        raise click.BadParameter("1 to 128 visible characters", param_hint="--actor")
    return actor


@contextmanager
def _exporting(file: Path) -> Iterator[tuple[Settings, Callable[[str], None]]]:
    """Yield the settings for an export, and a function that prints its final sentence.

    Print an `ExportStopped` as one sentence, and exit with 1. Exit as after SIGPIPE if the reader of standard output
    has closed its end.
    """
    from gateway.exporters.output import ExportStopped

    _handle_signals(signal.SIG_DFL)
    with _database() as settings:
        try:
            # On standard output are the rows.
            yield settings, lambda sentence: click.echo(sentence, err=file == Path("-"))
        except ExportStopped as error:
            sys.exit(f"gateway: {error}")
        except BrokenPipeError:
            sys.exit(128 + signal.SIGPIPE)


@contextmanager
def _importing() -> Iterator[Settings]:
    """Yield the settings for an import. Print an `ImportStopped` as one sentence, and exit with 1."""
    from gateway.importers.reader import ImportStopped

    _handle_signals(signal.SIG_DFL)
    with _database() as settings:
        try:
            yield settings
        except ImportStopped as error:
            sys.exit(f"gateway: {error}")


@audit.command("verify", epilog=examples("gateway audit verify", 'gateway audit verify --expect "$(cat head.txt)"'))
@click.option(
    "--expect",
    multiple=True,
    help="A head that was printed earlier (brand:position:hash), which the chain must contain. May be repeated.",
)
def verify_audit(expect: tuple[str, ...]) -> None:
    """Search the audit log for entries that were changed, deleted, reordered or inserted. If any, exit with 1."""
    from gateway.audit.verify import Head, VerificationStopped, print_verification

    try:
        expected = [Head.read(text) for text in expect]
    except ValueError:
        raise click.BadParameter("a head looks like brand:position:hash", param_hint="--expect") from None
    with _database() as settings:
        key = settings.audit_key.get_secret_value().encode() if settings.audit_key else b""
        try:
            clean = _run(print_verification(settings.owner_url, key, expected))
        except VerificationStopped as error:
            sys.exit(f"gateway: {error}")
    sys.exit(0 if clean else 1)


@events.command("status", epilog=examples("gateway events status"))
def events_status() -> None:
    """Print the status of the events without a position, of the watermark, and of each sink."""
    from gateway.events.pipeline import with_relay_role
    from gateway.events.status import print_status

    with _database() as settings:
        _run(with_relay_role(settings, print_status))


@events.command(
    "replay", epilog=examples("gateway events replay --sink webhook", "gateway events replay --sink nats --from 1200")
)
@click.option("--sink", required=True, help="The sink's name: `webhook`, `nats`, or one of GATEWAY_WEBHOOKS.")
@click.option("--from", "first", type=int, help="Position of the first event to send. Default: the current one.")
def replay_events(sink: str, first: int | None) -> None:
    """Send events to a sink again from a position, or retry at once. A disabled sink is enabled."""
    from functools import partial

    from gateway.events.pipeline import with_relay_role
    from gateway.events.replay import NoReplay, print_replay

    with _database() as settings:
        try:
            _run(with_relay_role(settings, partial(print_replay, sink=sink, first=first)))
        except NoReplay as error:
            sys.exit(f"gateway: {error}")


@events.command("restored", epilog=examples("gateway events restored"))
def events_restored() -> None:
    """Refuse the cursors from before a restore of the database. Run it once, before the gateways start again."""
    from gateway.events.restored import retire_cursors

    with _database() as settings:
        _run(retire_cursors(settings.owner_url))
    click.echo("Cursors from before the restore are refused as expired; subscribers read the current state again.")


@app.command(
    epilog=examples("gateway export schema > schema.graphql", "gateway export openapi > openapi.json"),
)
@click.argument("contract", type=click.Choice(["schema", "openapi"]))
@click.option("--federation", is_flag=True, help="Print the SDL of the federation subgraph.")
def export(contract: str, *, federation: bool) -> None:
    """Print the GraphQL schema, or the OpenAPI description of the REST door."""
    if contract == "schema":
        from schema import build_schema
        from schema.federation import subgraph_sdl

        click.echo(subgraph_sdl(build_schema()) if federation else build_schema().as_str())
    elif federation:
        raise click.BadParameter("is for the schema only", param_hint="--federation")
    else:
        from rest.openapi import openapi_json

        click.echo(openapi_json())


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a command to its end, with the collector enabled: all its modules are imported."""
    gc.enable()
    return asyncio.run(work)


def _settings() -> Settings:
    """Return the settings. Print a warning with the variables of Kubernetes Services that were ignored."""
    settings = Settings.from_environment()
    if names := environment.of_kubernetes(PREFIX):
        click.echo(
            f"warning: ignored {', '.join(names)}, which Kubernetes set for a Service. "
            "`enableServiceLinks: false` in the pod prevents this.",
            err=True,
        )
    return settings


@contextmanager
def _database(settings: Settings | None = None) -> Iterator[Settings]:
    """Yield settings with a database URL: the configured one, or that of a private PostgreSQL stopped on exit."""
    from gateway.observability.logs import configure_logging

    configure_logging()
    settings = settings or _settings()
    if settings.database_url is not None:
        yield settings
        return
    from gateway.database.roles import DATABASE, LOGIN, OWNER, create_database
    from gateway.embedded_postgres.cluster import PrivatePostgres

    with PrivatePostgres(settings.data_dir) as postgres:
        asyncio.run(create_database(postgres))
        yield settings.model_copy(
            update={
                "database_url": SecretStr(postgres.url(LOGIN, DATABASE)),
                "database_owner_url": SecretStr(postgres.url(OWNER, DATABASE)),
            }
        )
