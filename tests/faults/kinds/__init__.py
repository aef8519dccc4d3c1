"""Every fault there is: `make test` strikes with each once, the soak again and again.

In an order in which those that mostly wait come first: the rounds of the other profile run beside them.
"""

from __future__ import annotations

from typing import Final

from tests.faults.kinds.machine import MACHINE
from tests.faults.kinds.membership import MEMBERSHIP
from tests.faults.kinds.platform import PLATFORM
from tests.faults.kinds.poison import POISON
from tests.faults.kinds.processes import PROCESSES
from tests.faults.kinds.recipients import RECIPIENTS
from tests.faults.kinds.servers import SERVERS
from tests.faults.rounds import Fault

ALL: Final[tuple[Fault, ...]] = (*SERVERS, *RECIPIENTS, *PLATFORM, *MACHINE, *PROCESSES, *MEMBERSHIP, *POISON)
