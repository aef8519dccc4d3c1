"""Give a workspace an account on a channel, or change one."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from typing import Any

from django.core.management.base import CommandError
from django.db import transaction

from accounts import audit
from accounts.models import User, Workspace
from connectors import registry
from connectors.base import Connector
from connectors.errors import UnknownChannel
from core.commands import LeanCommand
from core.errors import Chat4AllError
from messaging import channels
from messaging.models import ChannelAccount

EXAMPLES = """
Credentials never go on the command line, where every user of the machine could read them:

  %(prog)s --channel whatsapp --account-id 105544332211 --agent alice --default \\
      --credential access_token=WHATSAPP_TOKEN --credential app_secret=WHATSAPP_APP_SECRET

takes the token from the environment variable WHATSAPP_TOKEN, and

  vault read … | %(prog)s --channel whatsapp --account-id 105544332211 --credentials-stdin

reads an object such as {"access_token": "…", "app_secret": "…"} from standard input.
"""


class Command(LeanCommand):
    help = "Add an account on a channel to a workspace, or bring the one with that id to these values."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        return super().create_parser(
            prog_name, subcommand, epilog=EXAMPLES, formatter_class=RawDescriptionHelpFormatter, **kwargs
        )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--workspace", default="default", help="its slug (default: default)")
        parser.add_argument("--channel", required=True, help="such as whatsapp or instagram")
        parser.add_argument("--account-id", required=True, help="as the platform names it: phone_number_id, ig_id")
        parser.add_argument("--display-name", default="", help="what people call it")
        parser.add_argument("--base-url", default="", help="of the platform's API (default: the platform's own)")
        parser.add_argument(
            "--agent",
            action="append",
            default=[],
            metavar="USERNAME",
            help="gets the conversations that unknown senders open; may be repeated",
        )
        parser.add_argument("--default", action="store_true", help="send through it what names no account")
        secrets = parser.add_mutually_exclusive_group(required=True)
        secrets.add_argument(
            "--credential",
            action="append",
            metavar="NAME=VARIABLE",
            help="a credential and the environment variable that holds it; may be repeated",
        )
        secrets.add_argument("--credentials-stdin", action="store_true", help="read a JSON object from standard input")

    def handle(self, *_args: Any, **options: Any) -> None:
        connector = _connector(options["channel"])
        credentials = _from_stdin() if options["credentials_stdin"] else _from_environment(options["credential"])
        _check_complete(connector, credentials)
        workspace = _workspace(options["workspace"])
        agents = [_agent(workspace, name) for name in options["agent"]]
        try:
            with transaction.atomic():
                is_new = channels.register(
                    workspace=workspace,
                    channel=connector.name,
                    account_id=options["account_id"],
                    credentials=credentials,
                    base_url=_checked_url(options["base_url"]),
                    display_name=options["display_name"],
                    agents=agents,
                    make_default=options["default"],
                )
                _write_down(
                    ChannelAccount.objects.get(channel=connector.name, account_id=options["account_id"]), is_new
                )
        except Chat4AllError as error:
            raise CommandError(error.detail) from error
        self.stdout.write(f"{'added' if is_new else 'changed'} {connector.name}:{options['account_id']}")
        if channels.unattended().filter(channel=connector.name, account_id=options["account_id"]).exists():
            self.stderr.write(self.style.WARNING(f"{channels.UNATTENDED} Name one with --agent."))


def _write_down(account: ChannelAccount, is_new: bool) -> None:
    audit.record(
        f"channel_account.{'added' if is_new else 'changed'}",
        actor=audit.command_actor(),
        workspace=account.workspace,
        target=account,
        details=f"{', '.join(account.credentials)}; is_active={account.is_active}, is_default={account.is_default}",
    )


def _connector(channel: str) -> Connector:
    try:
        return registry.get(channel)
    except UnknownChannel as error:
        raise CommandError(f"--channel {channel}: {error.detail}") from error


def _from_environment(pairs: Sequence[str]) -> dict[str, str]:
    credentials = {}
    for pair in pairs:
        name, equals, variable = pair.partition("=")
        if not (name and equals and variable):
            # The pair is not repeated: it may hold the secret itself.
            raise CommandError("--credential takes NAME=VARIABLE, where VARIABLE is an environment variable's name")
        if not os.environ.get(variable):
            raise CommandError(f"--credential {name}: the environment variable named after the = is not set or empty")
        credentials[name] = os.environ[variable]
    return credentials


def _from_stdin() -> dict[str, str]:
    try:
        content = json.load(sys.stdin)
    except ValueError:
        raise CommandError("standard input holds no JSON") from None
    if not isinstance(content, dict) or not all(isinstance(each, str) for each in content.values()):
        raise CommandError('standard input must hold a JSON object of strings: {"access_token": "…"}')
    return content


def _check_complete(connector: Connector, credentials: Mapping[str, str]) -> None:
    if missing := [name for name in connector.required_credentials if not credentials.get(name)]:
        raise CommandError(f"{connector.name} also needs the credentials {', '.join(missing)}")


def _checked_url(url: str) -> str:
    try:
        return channels.checked_base_url(url)
    except ValueError as error:
        raise CommandError(f"--base-url: {error}") from None


def _workspace(slug: str) -> Workspace:
    if workspace := Workspace.objects.filter(slug=slug).first():
        return workspace
    raise CommandError(f"--workspace {slug}: there is no such workspace")


def _agent(workspace: Workspace, username: str) -> User:
    if user := User.objects.named(workspace=workspace.slug, username=username):
        return user
    raise CommandError(f"--agent {username}: there is no such user in the workspace {workspace.slug}")
