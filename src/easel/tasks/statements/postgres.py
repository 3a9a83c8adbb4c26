"""The task store's SQL for PostgreSQL. Each statement is a transaction of its own unless it says PART.

What a statement changes it changes from the row's latest version: in READ COMMITTED an UPDATE that waited for another
transaction looks at its conditions again. What it only reads may be a moment older.
"""

# ruff: noqa: S608 - the parts that are put together are constants of this module

from __future__ import annotations

from easel.tasks.codec import COLUMNS

_PREFIXED = ", ".join(f"t.{column}" for column in COLUMNS)
_HELD = "t.state IN ('assigned', 'running')"
_MINE = f"t.uid = %(uid)s AND t.lease = %(lease)s AND {_HELD}"
_LINE = "hashtextextended(%(service)s, 0)"
"""Key of a service's advisory lock."""
_APPENDED = """
INSERT INTO task_results AS r (uid, result) SELECT uid, %(change)s::bytea FROM {source} WHERE %(change)s::bytea IS NOT NULL
ON CONFLICT (uid) DO UPDATE SET result = r.result || '\\x0a'::bytea || excluded.result
RETURNING result
"""
"""A change is a line more: what it is added to needs not be read (`codec.joined`)."""

# The line. Whoever adds to a service's line holds its lock, shared, before it draws a number from the sequence. So whoever
# holds it alone knows that every number up to the sequence's latest is in the tables or will never be: what is counted then,
# and the numbers drawn later, bound how many wait. See `postgres_line`.

INSERT_TASK = f"""
WITH lock AS MATERIALIZED (
    SELECT pg_advisory_xact_lock_shared({_LINE})
), place AS MATERIALIZED (
    SELECT nextval('tasks_seq_seq') AS seq FROM lock
), last AS MATERIALIZED (
    SELECT service, priority, owner, turn FROM tasks
    WHERE (service, priority, owner, turn) <= (%(service)s, %(priority)s, %(owner)s, 9223372036854775807)
        AND state = 'queued'
    ORDER BY service DESC, priority DESC, owner DESC, turn DESC LIMIT 1
), added AS (
    INSERT INTO tasks (
        seq, uid, service, owner, id, signature, state, priority, turn, tags, created, deadline, attempt, cancelling, rear,
        percent, last_event
    ) SELECT
        place.seq, %(uid)s, %(service)s, %(owner)s, %(id)s, %(signature)s, 'queued', %(priority)s,
        coalesce(
            (SELECT turn + 1 FROM last WHERE (service, priority, owner) = (%(service)s, %(priority)s, %(owner)s)),
            (SELECT turn FROM tasks WHERE service = %(service)s AND priority = %(priority)s
                AND state = 'queued' ORDER BY turn LIMIT 1),
            0
        ),
        %(tags)s, %(created)s, %(deadline)s::bigint, 0, 0, 0, 0, 1
    FROM place WHERE place.seq <= %(last)s
    ON CONFLICT (service, owner, id) DO NOTHING
    RETURNING uid
), body AS (
    INSERT INTO task_bodies (uid, body) SELECT uid, %(body)s FROM added
), result AS (
    INSERT INTO task_results (uid, result) SELECT uid, %(result)s::bytea FROM added WHERE %(result)s::bytea IS NOT NULL
), event AS (
    INSERT INTO task_events (uid, number, at, kind, data) SELECT uid, 1, %(created)s, 'queued', '{{}}' FROM added
)
SELECT place.seq, EXISTS (SELECT FROM added) FROM place
"""
"""A new task lines up: behind its owner's last one, else with the head of its priority.

``last`` is the owner's last one, or of whoever comes before in the index `tasks_owner`: asked for directly, the planner would
rather look through the whole line from its end.

Returns the number drawn and whether the task was added: it was not when its number is beyond ``last``, or its id taken.
"""

LOCK_LINE = f"SELECT pg_advisory_xact_lock({_LINE})"
"""PART. Nobody adds to the service's line until the transaction ends."""

COUNT_LINE = """
SELECT (SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM tasks_seq_seq),
    (SELECT count(*) FROM (SELECT FROM tasks WHERE service = %(service)s AND state = 'queued' LIMIT %(most)s) AS waiting)
"""
"""PART, after `LOCK_LINE`. The latest number drawn, and how many wait, counted to ``most`` only."""

DRAW_NUMBERS = f"""
WITH lock AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared({_LINE}))
SELECT nextval('tasks_seq_seq') FROM lock, generate_series(1, %(count)s)
"""
"""PART. To be done before tasks go back in line: each counts like a new one."""

CLAIM = f"""
WITH next AS MATERIALIZED (
    SELECT seq FROM tasks
    WHERE service = %(service)s AND state = 'queued' AND (deadline IS NULL OR deadline > %(now)s)
    ORDER BY priority DESC, turn, seq LIMIT 1
    FOR UPDATE SKIP LOCKED
), mine AS (
    UPDATE tasks t SET
        state = 'assigned', attempt = attempt + 1, instance = %(instance)s, lease = %(lease)s, lease_until = %(until)s,
        last_event = last_event + 1
    FROM next WHERE t.seq = next.seq
    RETURNING {_PREFIXED}
), event AS (
    INSERT INTO task_events (uid, number, at, kind, data)
    SELECT uid, last_event, %(now)s, 'assigned', %(said)s::text || attempt || '}}' FROM mine
)
SELECT mine.*, b.body, r.result
FROM mine LEFT JOIN task_bodies b ON b.uid = mine.uid LEFT JOIN task_results r ON r.uid = mine.uid
"""
"""The first waiting task that nobody else takes becomes the instance's. One past its deadline is left to the sweep."""

# Writes with a lease.

START = f"""
WITH mine AS (
    UPDATE tasks t SET state = 'running', started = %(at)s, last_event = last_event + 1
    WHERE {_MINE} AND t.state = 'assigned'
    RETURNING uid, last_event
), event AS (
    INSERT INTO task_events (uid, number, at, kind, data) SELECT uid, last_event, %(at)s, 'started', '{{}}' FROM mine
)
SELECT EXISTS (SELECT FROM mine) OR EXISTS (SELECT FROM tasks t WHERE {_MINE})
"""
"""Returns whether the lease holds."""

RENEW = f"""
WITH held AS MATERIALIZED (
    SELECT t.seq FROM unnest(%(uids)s::text[], %(leases)s::text[]) AS given (uid, lease)
    JOIN tasks t ON t.uid = given.uid AND t.lease = given.lease
    WHERE {_HELD} ORDER BY t.seq FOR UPDATE OF t
)
UPDATE tasks t SET lease_until = %(until)s FROM held WHERE t.seq = held.seq RETURNING t.uid, t.lease, t.cancelling
"""
"""Rows are locked in one order, so that calls that share some do not wait for each other in a circle."""

PROGRESS = f"""
WITH mine AS (
    UPDATE tasks t SET percent = %(percent)s, current_node = %(node)s, last_event = last_event + %(events)s
    WHERE {_MINE}
    RETURNING uid, last_event
), event AS (
    INSERT INTO task_events (uid, number, at, kind, data)
    SELECT uid, last_event, %(now)s, 'progress', %(data)s FROM mine WHERE %(events)s = 1
)
SELECT last_event FROM mine
"""

FINISH = f"""
WITH mine AS (
    UPDATE tasks t SET
        state = %(state)s, ended = %(ended)s, started = coalesce(%(started)s::bigint, started), current_node = NULL,
        percent = CASE %(state)s::text WHEN 'succeeded' THEN 100 ELSE percent END,
        lease_until = NULL, cancelling = 0, last_event = last_event + 1
    WHERE {_MINE}
    RETURNING {_PREFIXED}
), changed AS ({_APPENDED.format(source="mine")}
), event AS (
    INSERT INTO task_events (uid, number, at, kind, data)
    SELECT uid, last_event, %(ended)s, state, %(data)s FROM mine
)
SELECT mine.*, coalesce((SELECT result FROM changed), (SELECT result FROM task_results r WHERE r.uid = %(uid)s)) FROM mine
"""
"""The end, by the lease that holds the task. The token stays, so that the same end can be told again."""

SELECT_FINISHED = f"""
SELECT {_PREFIXED}, r.result FROM tasks t LEFT JOIN task_results r ON r.uid = t.uid
WHERE t.uid = %(uid)s AND t.lease = %(lease)s AND t.ended IS NOT NULL
"""
"""The task that this lease has finished before."""

# Results, as PART of a transaction that has locked the task's row.

SELECT_RESULTS = "SELECT uid, result FROM task_results WHERE uid = ANY(%(uids)s::text[])"

REPLACE_RESULTS = """
INSERT INTO task_results (uid, result) SELECT * FROM unnest(%(uids)s::text[], %(results)s::bytea[])
ON CONFLICT (uid) DO UPDATE SET result = excluded.result
"""

DELETE_RESULTS = "DELETE FROM task_results WHERE uid = ANY(%(uids)s::text[])"

# Back in line, or to an end without an instance's word: PART.

_TO_RELEASE = "t.seq, t.uid, t.service, t.priority, t.turn, t.attempt, t.cancelling"

SELECT_RELEASED = f"SELECT {_TO_RELEASE} FROM tasks t WHERE {_MINE} FOR UPDATE"
"""PART. What is to be known of a task that an instance gives back; `SELECT_OVERDUE` has the same columns."""

SELECT_OVERDUE = f"""
SELECT {_TO_RELEASE} FROM tasks t
WHERE t.lease_until IS NOT NULL AND t.lease_until <= %(now)s ORDER BY t.lease_until LIMIT %(limit)s
FOR UPDATE SKIP LOCKED
"""
"""PART. Of several that sweep at once, each gets other rows."""

SELECT_HEAD = """
SELECT turn, seq FROM tasks
WHERE service = %(service)s AND priority = %(priority)s AND state = 'queued' ORDER BY turn, seq LIMIT 1
"""
"""PART. The first waiting task of a priority."""

REQUEUE = f"""
UPDATE tasks t SET
    state = 'queued', turn = given.turn, attempt = given.attempt, started = NULL, percent = 0, current_node = NULL,
    lease = NULL, lease_until = NULL, last_event = last_event + 1
FROM unnest(%(seqs)s::bigint[], %(turns)s::bigint[], %(attempts)s::integer[]) AS given (seq, turn, attempt)
WHERE t.seq = given.seq
RETURNING {_PREFIXED}
"""

END = f"""
UPDATE tasks t SET
    state = given.state, rear = given.rear, ended = %(now)s, attempt = given.attempt, current_node = NULL,
    lease = NULL, lease_until = NULL, cancelling = 0, last_event = last_event + 1
FROM unnest(%(seqs)s::bigint[], %(states)s::text[], %(rears)s::integer[], %(attempts)s::integer[])
    AS given (seq, state, rear, attempt)
WHERE t.seq = given.seq
RETURNING {_PREFIXED}
"""
"""Cancelled, or lost into the rear queue. No lease is valid afterwards."""

INSERT_EVENTS = """
INSERT INTO task_events (uid, number, at, kind, data)
SELECT given.uid, given.number, %(now)s, given.kind, given.data
FROM unnest(%(uids)s::text[], %(numbers)s::integer[], %(kinds)s::text[], %(datas)s::text[])
    AS given (uid, number, kind, data)
"""

EXPIRE = f"""
WITH late AS MATERIALIZED (
    SELECT seq FROM tasks
    WHERE state = 'queued' AND deadline IS NOT NULL AND deadline <= %(now)s ORDER BY deadline LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), gone AS (
    UPDATE tasks t SET state = 'expired', ended = %(now)s, last_event = last_event + 1
    FROM late WHERE t.seq = late.seq
    RETURNING t.uid, t.last_event
), changed AS ({_APPENDED.format(source="gone")}
), event AS (
    INSERT INTO task_events (uid, number, at, kind, data) SELECT uid, last_event, %(now)s, 'expired', '{{}}' FROM gone
)
SELECT uid FROM gone
"""

CANCEL = f"""
WITH mine AS (
    UPDATE tasks t SET
        state = CASE t.state WHEN 'queued' THEN 'cancelled' ELSE t.state END,
        ended = CASE t.state WHEN 'queued' THEN %(now)s ELSE t.ended END,
        cancelling = CASE t.state WHEN 'queued' THEN 0 ELSE 1 END,
        last_event = last_event + 1
    WHERE t.service = %(service)s AND t.owner = %(owner)s AND t.id = %(id)s
        AND (t.state = 'queued' OR t.cancelling = 0 AND {_HELD})
    RETURNING {_PREFIXED}
), event AS (
    INSERT INTO task_events (uid, number, at, kind, data)
    SELECT uid, last_event, %(now)s, CASE state WHEN 'cancelled' THEN state ELSE 'cancelling' END, '{{}}' FROM mine
)
SELECT mine.*, r.result FROM mine LEFT JOIN task_results r ON r.uid = mine.uid
"""
"""A waiting task ends, a held one is marked. No row when it is over, marked already, or not there."""

# Looking.

_WITH_RESULT = (
    f"SELECT {_PREFIXED}, r.result FROM tasks t LEFT JOIN task_results r ON r.uid = t.uid"
)

SELECT_BY_ID = (
    f"{_WITH_RESULT} WHERE t.service = %(service)s AND t.owner = %(owner)s AND t.id = %(id)s"
)
"""A caller's own task."""

SELECT_BY_UID = f"{_WITH_RESULT} WHERE t.uid = %(uid)s"

COUNTS = "SELECT state, count(*) FROM tasks WHERE service = %(service)s GROUP BY state"

POSITION = """
SELECT (
    SELECT count(*) FROM tasks t WHERE t.service = me.service AND t.state = 'queued' AND t.priority > me.priority
) + (
    SELECT count(*) FROM tasks t WHERE t.service = me.service AND t.state = 'queued' AND t.priority = me.priority
        AND (t.turn, t.seq) < (me.turn, me.seq)
)
FROM tasks me WHERE me.uid = %(uid)s AND me.state = 'queued'
"""
"""How many are claimed before a waiting task; no row when it does not wait."""

SELECT_EVENTS = """
SELECT number, at, kind, data FROM task_events
WHERE uid = %(uid)s AND number > %(after)s ORDER BY number LIMIT %(limit)s
"""

SELECT_HELD = f"""
WITH t AS MATERIALIZED (
    SELECT {", ".join(COLUMNS)} FROM tasks WHERE lease_until IS NOT NULL ORDER BY lease_until
)
SELECT {_PREFIXED}, r.result FROM t LEFT JOIN task_results r ON r.uid = t.uid
WHERE %(service)s::text IS NULL OR t.service = %(service)s
"""
"""Every held task has a lease that ends, and only those. The order makes the planner use their index."""

_FORGET = """
WITH gone AS MATERIALIZED (
    DELETE FROM tasks WHERE seq = ANY(ARRAY(
        SELECT seq FROM tasks WHERE {which} LIMIT %(limit)s FOR UPDATE {locked}
    )) RETURNING uid
), bodies AS (
    DELETE FROM task_bodies b USING gone WHERE b.uid = gone.uid
), results AS (
    DELETE FROM task_results r USING gone WHERE r.uid = gone.uid
), events AS (
    DELETE FROM task_events e USING gone WHERE e.uid = gone.uid
)
SELECT uid FROM gone
"""

FORGET_ENDED = _FORGET.format(
    which="service = %(service)s AND ended IS NOT NULL AND ended < %(ended_before)s ORDER BY ended",
    locked="SKIP LOCKED",
)

FORGET_ANY = _FORGET.format(which="service = %(service)s", locked="")


def page(*, owner: bool, states: bool, rear: bool, before: bool) -> str:
    """Return the statement of a page with these filters."""
    conditions = [
        "t.service = %(service)s",
        "t.owner = %(owner)s" if owner else "",
        "t.state = ANY(%(states)s::text[])" if states else "",
        "t.rear = %(rear)s" if rear else "",
        # A task that was forgotten meanwhile still has its place: uids sort by time.
        """t.seq < coalesce(
            (SELECT seq FROM tasks WHERE uid = %(before)s),
            (SELECT min(seq) FROM tasks WHERE service = %(service)s AND uid COLLATE "C" >= %(before)s),
            9223372036854775807)"""
        if before
        else "",
    ]
    where = " AND ".join(filter(None, conditions))
    return f"{_WITH_RESULT} WHERE {where} ORDER BY t.seq DESC LIMIT %(limit)s"
