"""What operators see: channel accounts, and everything that happened to a message."""

from messaging.admin.channel_accounts import ChannelAccountAdmin as ChannelAccountAdmin
from messaging.admin.explorer import ExplorerAdmin as ExplorerAdmin
