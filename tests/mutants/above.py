"""Deliberate bugs of the state machine and of the services."""

from __future__ import annotations

from tests.mutants.catalogue import Mutant

MACHINE = "gaia_grpc/state/machine.py"
REQUESTS = "gaia_grpc/state/requests.py"
FEED = "gaia_grpc/services/alert_feed.py"
HEALTH = "gaia_grpc/services/health.py"
PROCESSES = "tests/e2e/test_bug_classes.py::"
MACHINES = "tests/e2e/test_determinism.py::test_b27_peers_on_different_machines_have_equal_hashes"

MUTANTS = (
    Mutant(
        "B19",
        "a repeated request is done again",
        REQUESTS,
        "        entry = self._entries.get(key_of(command))\n        if entry is None:\n",
        "        entry = None\n        if entry is None:\n",
        (
            PROCESSES + "test_b19_a_change_whose_reply_was_lost_is_made_once_and_told_again",
            "tests/state/test_requests.py::"
            "test_a_repeated_request_changes_nothing_and_gets_the_first_result",
        ),
    ),
    Mutant(
        "B27",
        "apply looks at the hash of a string",
        MACHINE,
        "        context.now_ms = max(context.now_ms, command.elapsed_ms)\n",
        "        context.now_ms = max(context.now_ms, command.elapsed_ms)"
        " + hash(command.request_id) % 2\n",
        (MACHINES,),
        limit_s=90,
    ),
    Mutant(
        "B27",
        "apply looks at the clock of its machine",
        MACHINE,
        "        context.wall_ms = command.wall_ms\n",
        "        context.wall_ms = command.wall_ms\n"
        "        if index % 100 == 0:\n"
        '            context.now_ms += __import__("time").time_ns() % 2\n',
        (MACHINES,),
        limit_s=90,
    ),
    Mutant(
        "B27",
        "apply looks at the time zone",
        MACHINE,
        "        context.wall_ms = command.wall_ms\n",
        "        context.wall_ms = command.wall_ms\n"
        '        context.now_ms += __import__("time").localtime(0).tm_hour % 2\n',
        (MACHINES,),
        limit_s=90,
    ),
    Mutant(
        "B28",
        "a subscriber that comes back gets the last event again",
        FEED,
        'retained", bounds)\n        return after\n',
        'retained", bounds)\n        return after - 1\n',
        ("tests/services/test_alerts.py::test_b28_a_stream_goes_on_after_its_cursor",),
        limit_s=90,
    ),
    Mutant(
        "B28",
        "a subscriber that comes back misses an event",
        FEED,
        'retained", bounds)\n        return after\n',
        'retained", bounds)\n        return after + 1\n',
        (PROCESSES + "test_b28_subscribers_of_every_peer_see_the_one_sequence",),
        limit_s=90,
    ),
    Mutant(
        "B28",
        "a page begins one event late",
        FEED,
        "filter=alert_filter, after_sequence=cursor, limit=EVENTS_PER_READ",
        "filter=alert_filter, after_sequence=cursor + (cursor > 0), limit=EVENTS_PER_READ",
        (PROCESSES + "test_b28_subscribers_of_every_peer_see_the_one_sequence",),
        limit_s=90,
    ),
    Mutant(
        "B30",
        "health says that all is well",
        HEALTH,
        "        serving = not self._draining and self._log.status().writable\n",
        "        serving = not self._draining\n",
        (PROCESSES + "test_b30_health_tells_when_nothing_moves_and_all_move_on_when_healed",),
        limit_s=90,
    ),
)
