"""The tables, as SQLAlchemy Core describes them: the truth that migrations must add up to. Times are ms since the epoch."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

BigKey = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""SQLite numbers rows by themselves only for columns of the type INTEGER."""

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("seq", BigKey, primary_key=True, autoincrement=True),
    sa.Column("uid", sa.Text, nullable=False, unique=True),
    sa.Column("service", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("signature", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("turn", sa.BigInteger, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("started", sa.BigInteger),
    sa.Column("ended", sa.BigInteger),
    sa.Column("deadline", sa.BigInteger),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("instance", sa.Text),
    sa.Column("lease", sa.Text),
    sa.Column("lease_until", sa.BigInteger),
    sa.Column("cancelling", sa.Integer, nullable=False),
    sa.Column("rear", sa.Integer, nullable=False),
    sa.Column("percent", sa.Float, nullable=False),
    sa.Column("current_node", sa.Text),
    sa.Column("last_event", sa.Integer, nullable=False),
    sa.UniqueConstraint("service", "owner", "id"),
    sqlite_autoincrement=True,
)
"""One row a task. ``turn`` is its place in the fair order within its priority (`TaskStore.put`)."""

sa.Index(
    "tasks_claim",
    tasks.c.service,
    tasks.c.priority.desc(),
    tasks.c.turn,
    tasks.c.seq,
    sqlite_where=tasks.c.state == "queued",
    postgresql_where=tasks.c.state == "queued",
)
sa.Index(
    "tasks_owner",
    tasks.c.service,
    tasks.c.priority,
    tasks.c.owner,
    tasks.c.turn,
    sqlite_where=tasks.c.state == "queued",
    postgresql_where=tasks.c.state == "queued",
)
sa.Index(
    "tasks_lease",
    tasks.c.lease_until,
    sqlite_where=tasks.c.lease_until.is_not(None),
    postgresql_where=tasks.c.lease_until.is_not(None),
)
sa.Index(
    "tasks_deadline",
    tasks.c.deadline,
    sqlite_where=sa.and_(tasks.c.state == "queued", tasks.c.deadline.is_not(None)),
    postgresql_where=sa.and_(tasks.c.state == "queued", tasks.c.deadline.is_not(None)),
)
sa.Index("tasks_list", tasks.c.service, tasks.c.seq)
sa.Index(
    "tasks_ended",
    tasks.c.service,
    tasks.c.ended,
    sqlite_where=tasks.c.ended.is_not(None),
    postgresql_where=tasks.c.ended.is_not(None),
)

task_bodies = sa.Table(
    "task_bodies",
    metadata,
    sa.Column("uid", sa.Text, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
"""`TaskBody` as JSON."""

task_results = sa.Table(
    "task_results",
    metadata,
    sa.Column("uid", sa.Text, primary_key=True),
    sa.Column("result", sa.LargeBinary, nullable=False),
)
"""``{nodes, seeds, node_errors, error}`` as JSON: rewritten with progress, final with the end.

On PostgreSQL an end is a line more, which changes the one before (`tasks.codec.joined`)."""

task_events = sa.Table(
    "task_events",
    metadata,
    sa.Column("uid", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

services = sa.Table(
    "services",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("edition", sa.Text, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("stable_revision", sa.Integer),
    sa.Column("instances", sa.Integer, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("restarts_asked", sa.Integer, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("join_token", sa.Text, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("updated", sa.BigInteger, nullable=False),
)

revisions = sa.Table(
    "revisions",
    metadata,
    sa.Column("service", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("warnings", sa.Text, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
)
"""``spec`` is `ServiceSpec` as JSON, ``source`` what was deployed, word for word."""

instances = sa.Table(
    "instances",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("service", sa.Text, nullable=False, index=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("runtime", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("device", sa.Text),
    sa.Column("handle", sa.Text, nullable=False),
    sa.Column("token_hash", sa.Text, nullable=False),
    sa.Column("restarts", sa.Integer, nullable=False),
    sa.Column("last_state", sa.Text, nullable=False),
    sa.Column("not_before", sa.BigInteger, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("started", sa.BigInteger),
    sa.Column("ready_at", sa.BigInteger),
    sa.Column("updated", sa.BigInteger, nullable=False),
)
"""``handle`` is the runtime's checkpoint as JSON; ``target`` what is wanted, ``status`` what is."""

service_events = sa.Table(
    "service_events",
    metadata,
    sa.Column("seq", BigKey, primary_key=True, autoincrement=True),
    sa.Column("service", sa.Text, nullable=False, index=True),
    sa.Column("instance", sa.Text),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("advice", sa.Text, nullable=False),
    sa.Column("log", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
"""``type`` is Normal or Warning; ``log`` the last log lines as a JSON array."""
