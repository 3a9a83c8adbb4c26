"""The task store's SQL for SQLite. Every statement runs within a write transaction (`BEGIN IMMEDIATE`) unless it says READ.

``state = 'queued'`` and ``IS NOT NULL`` are spelled out as the partial indexes spell them: else SQLite does not use those.
"""

# ruff: noqa: S608 - the parts that are put together are constants of this module

from __future__ import annotations

from easel.tasks.codec import COLUMNS

_COLUMNS = ", ".join(COLUMNS)
_PREFIXED = ", ".join(f"t.{column}" for column in COLUMNS)
_HELD = "state IN ('assigned', 'running')"
_MINE = f"uid = :uid AND lease = :lease AND {_HELD}"

INSERT_TASK = """
INSERT INTO tasks (
    uid, service, owner, id, signature, state, priority, turn, tags, created, deadline, attempt, cancelling, rear,
    percent, last_event
) VALUES (
    :uid, :service, :owner, :id, :signature, 'queued', :priority,
    coalesce(
        (SELECT max(turn) + 1 FROM tasks
            WHERE service = :service AND priority = :priority AND owner = :owner AND state = 'queued'),
        (SELECT turn FROM tasks
            WHERE service = :service AND priority = :priority AND state = 'queued' ORDER BY turn LIMIT 1),
        0
    ),
    :tags, :created, :deadline, 0, 0, 0, 0, 1
) ON CONFLICT (service, owner, id) DO NOTHING
"""
"""A new task lines up: behind its owner's last one, else with the head of its priority. No row when the id is taken."""

INSERT_BODY = "INSERT INTO task_bodies (uid, body) VALUES (:uid, :body)"

INSERT_EVENT = "INSERT INTO task_events (uid, number, at, kind, data) VALUES (:uid, :number, :at, :kind, :data)"

CLAIM = f"""
UPDATE tasks SET
    state = 'assigned', attempt = attempt + 1, instance = :instance, lease = :lease, lease_until = :until,
    last_event = last_event + 1
WHERE seq = (
    SELECT seq FROM tasks
    WHERE service = :service AND state = 'queued' AND (deadline IS NULL OR deadline > :now)
    ORDER BY priority DESC, turn, seq LIMIT 1
)
RETURNING {_COLUMNS}
"""
"""The first waiting task becomes the instance's. One that is past its deadline is left to the sweep."""

SELECT_WORK = """
SELECT b.body, r.result FROM task_bodies b LEFT JOIN task_results r ON r.uid = b.uid WHERE b.uid = :uid
"""
"""What a claimed task needs to run."""

START = f"""
UPDATE tasks SET state = 'running', started = :at, last_event = last_event + 1
WHERE {_MINE} AND state = 'assigned'
RETURNING last_event
"""

SELECT_HELD = f"SELECT 1 FROM tasks WHERE {_MINE}"
"""Whether a lease holds."""

RENEW = f"UPDATE tasks SET lease_until = :until WHERE {_MINE} RETURNING cancelling"

PROGRESS = f"""
UPDATE tasks SET percent = :percent, current_node = :node, last_event = last_event + :events
WHERE {_MINE}
RETURNING last_event
"""

SELECT_RESULT = "SELECT result FROM task_results WHERE uid = :uid"

REPLACE_RESULT = """
INSERT INTO task_results (uid, result) VALUES (:uid, :result)
ON CONFLICT (uid) DO UPDATE SET result = excluded.result
"""

DELETE_RESULT = "DELETE FROM task_results WHERE uid = :uid"

FINISH = f"""
UPDATE tasks SET
    state = :state, ended = :ended, started = coalesce(:started, started), current_node = NULL,
    percent = CASE :state WHEN 'succeeded' THEN 100 ELSE percent END,
    lease_until = NULL, cancelling = 0, last_event = last_event + 1
WHERE {_MINE}
RETURNING {_COLUMNS}
"""
"""The end, by the lease that holds the task. The token stays, so that the same end can be told again."""

SELECT_FINISHED = f"""
SELECT {_PREFIXED}, r.result FROM tasks t LEFT JOIN task_results r ON r.uid = t.uid
WHERE t.uid = :uid AND t.lease = :lease AND t.ended IS NOT NULL
"""
"""The task that this lease has finished before."""

SELECT_RELEASED = (
    f"SELECT seq, uid, service, priority, turn, attempt, cancelling FROM tasks WHERE {_MINE}"
)
"""What is to be known of a task that an instance gives back; `SELECT_OVERDUE` has the same columns."""

SELECT_OVERDUE = """
SELECT seq, uid, service, priority, turn, attempt, cancelling FROM tasks
WHERE lease_until IS NOT NULL AND lease_until <= :now ORDER BY lease_until LIMIT :limit
"""

SELECT_HEAD = """
SELECT turn, seq FROM tasks
WHERE service = :service AND priority = :priority AND state = 'queued' ORDER BY turn, seq LIMIT 1
"""
"""The first waiting task of a priority."""

REQUEUE = f"""
UPDATE tasks SET
    state = 'queued', turn = :turn, attempt = :attempt, started = NULL, percent = 0, current_node = NULL,
    lease = NULL, lease_until = NULL, last_event = last_event + 1
WHERE seq = :seq
RETURNING {_COLUMNS}
"""

END = f"""
UPDATE tasks SET
    state = :state, rear = :rear, ended = :now, attempt = :attempt, current_node = NULL,
    lease = NULL, lease_until = NULL, cancelling = 0, last_event = last_event + 1
WHERE seq = :seq
RETURNING {_COLUMNS}
"""
"""The end without an instance: cancelled, or lost into the rear queue. No lease is valid afterwards."""

SELECT_BY_ID = f"""
SELECT {_PREFIXED}, r.result FROM tasks t LEFT JOIN task_results r ON r.uid = t.uid
WHERE t.service = :service AND t.owner = :owner AND t.id = :id
"""
"""READ. A caller's own task."""

SELECT_BY_UID = f"""
SELECT {_PREFIXED}, r.result FROM tasks t LEFT JOIN task_results r ON r.uid = t.uid WHERE t.uid = :uid
"""
"""READ."""

SELECT_FOR_CANCEL = """
SELECT seq, uid, state, attempt, cancelling FROM tasks WHERE service = :service AND owner = :owner AND id = :id
"""

MARK_CANCELLING = """
UPDATE tasks SET cancelling = 1, last_event = last_event + 1 WHERE seq = :seq RETURNING last_event
"""

EXPIRE = """
UPDATE tasks SET state = 'expired', ended = :now, last_event = last_event + 1
WHERE seq IN (
    SELECT seq FROM tasks
    WHERE state = 'queued' AND deadline IS NOT NULL AND deadline <= :now ORDER BY deadline LIMIT :limit
)
RETURNING uid, service, last_event
"""

COUNT_WAITING = "SELECT count(*) FROM tasks INDEXED BY tasks_owner WHERE service = :service AND state = 'queued'"

COUNTS = "SELECT state, count(*) FROM tasks WHERE service = :service GROUP BY state"
"""READ."""

POSITION = """
SELECT (
    SELECT count(*) FROM tasks t WHERE t.service = me.service AND t.state = 'queued' AND t.priority > me.priority
) + (
    SELECT count(*) FROM tasks t WHERE t.service = me.service AND t.state = 'queued' AND t.priority = me.priority
        AND (t.turn, t.seq) < (me.turn, me.seq)
)
FROM tasks me WHERE me.uid = :uid AND me.state = 'queued'
"""
"""READ. How many are claimed before a waiting task; no row when it does not wait."""

SELECT_EVENTS = """
SELECT number, at, kind, data FROM task_events WHERE uid = :uid AND number > :after ORDER BY number LIMIT :limit
"""
"""READ."""

SELECT_ALL_HELD = f"""
SELECT {_PREFIXED}, r.result FROM tasks t INDEXED BY tasks_lease LEFT JOIN task_results r ON r.uid = t.uid
WHERE t.lease_until IS NOT NULL AND (:service IS NULL OR t.service = :service) ORDER BY t.seq
"""
"""READ. Every held task has a lease that ends, and only those."""

FORGET_ENDED = """
DELETE FROM tasks WHERE seq IN (
    SELECT seq FROM tasks
    WHERE service = :service AND ended IS NOT NULL AND ended < :before ORDER BY ended LIMIT :limit
)
RETURNING uid
"""

FORGET_ANY = """
DELETE FROM tasks WHERE seq IN (SELECT seq FROM tasks WHERE service = :service LIMIT :limit) RETURNING uid
"""

FORGET_PARTS = (
    "DELETE FROM task_bodies WHERE uid = ?",
    "DELETE FROM task_results WHERE uid = ?",
    "DELETE FROM task_events WHERE uid = ?",
)


def page(*, owner: bool, states: int, rear: bool, before: bool) -> str:
    """READ. Return the statement of a page with these filters; ``states`` is how many (``:state0`` …)."""
    wanted = ", ".join(f":state{n}" for n in range(states))
    conditions = [
        "t.service = :service",
        "t.owner = :owner" if owner else "",
        f"t.state IN ({wanted})" if states else "",
        "t.rear = :rear" if rear else "",
        # A task that was forgotten meanwhile still has its place: uids sort by time.
        """t.seq < coalesce(
            (SELECT seq FROM tasks WHERE uid = :before),
            (SELECT min(seq) FROM tasks WHERE service = :service AND uid >= :before),
            9223372036854775807)"""
        if before
        else "",
    ]
    where = " AND ".join(filter(None, conditions))
    return f"""
        SELECT {_PREFIXED}, r.result FROM tasks t LEFT JOIN task_results r ON r.uid = t.uid
        WHERE {where} ORDER BY t.seq DESC LIMIT :limit
    """
