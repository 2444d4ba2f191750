"""How long `sag-worker health` may take; the probes and Compose's health check must wait longer."""

from __future__ import annotations

from api_contracts.names import TRANSPORT_OPTIONS
from worker.cli.health import ANSWER_TIMEOUT_S, RECORDS_TIMEOUT_S

#: Of one answer of the broker; `test_health_time` shows that `health` waits for it once.
BROKER_TIMEOUT_S = float(str(TRANSPORT_OPTIONS["socket_timeout"]))
#: For the imports, which were seen to take 4 s on a busy machine.
IMPORTS_S = 15
#: The broker hangs once, the workers answer, and the Redis of records hangs, asked twice.
LONGEST_HEALTH_S = BROKER_TIMEOUT_S + ANSWER_TIMEOUT_S + 2 * RECORDS_TIMEOUT_S + IMPORTS_S
