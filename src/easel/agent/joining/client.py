"""The agent's end of the link: dialled, kept, dialled again, until the gateway or the operator wants it to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable

import aiohttp
from aiohttp import WSMsgType

from easel import __version__
from easel.agent.background import Background
from easel.agent.joining.backoff import Backoff
from easel.agent.joining.conversation import Conversation
from easel.agent.joining.desk import Desk
from easel.agent.joining.engine_watch import EngineWatch
from easel.agent.joining.joining import Joining
from easel.agent.joining.leaving import FOR_GOOD, WRONG_TOKEN, Leaving, closed_for_good
from easel.agent.joining.outbox import Outbox
from easel.agent.joining.tunnel import carry
from easel.agent.joining.work import Wish
from easel.agent.link import EngineLink
from easel.errors import BadRequest
from easel.link import messages
from easel.link.messages import FromGateway, Hello, Welcome

log = logging.getLogger(__name__)

HEARTBEAT = 10.0
"""Seconds between pings; a gateway that answers none for half of that is gone. Well below what a lease lasts."""
HANDSHAKE_TIMEOUT = 20.0
STEADY = 1.0
"""Seconds after which a connection counts as one that went well."""
FAREWELL = 5.0
"""Seconds a stopping agent waits until the gateway has stored its last words."""


class LinkClient:
    """Keeps an agent connected to its gateway.

    ``on_welcome`` is called with each `Welcome`, ``say`` with lines for people. ``clock`` counts seconds, forwards only.
    """

    def __init__(
        self,
        joining: Joining,
        http: aiohttp.ClientSession,
        *,
        desk: Desk,
        outbox: Outbox,
        link: EngineLink,
        watch: EngineWatch,
        on_welcome: Callable[[Welcome], None],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._joining = joining
        self._http = http
        self._desk = desk
        self._outbox = outbox
        self._link = link
        self._watch = watch
        self._on_welcome = on_welcome
        self._say = say
        self._clock = clock
        self._boot = uuid.uuid4().hex
        self._background = Background()
        self._tunnels: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        """Whether the agent is to end once nothing is held."""
        self._leave = asyncio.Event()
        self._alone_since = clock()
        self._unheard = False
        """Whether it was said that no gateway answers."""
        self.connected = False
        """Whether a gateway has welcomed us and was not lost since."""
        self.left: asyncio.Future[Leaving] = asyncio.get_running_loop().create_future()
        """Settles when the agent is to end."""
        desk.on_empty = self._maybe_leave

    def start(self) -> None:
        """Begin to stay connected."""
        self._keeper = asyncio.create_task(self._keep(), name="easel agent link")

    def drain(self) -> None:
        """The agent stops: take nothing more, give back what has not begun; what is ended by us does not count."""
        self._stopping = True
        self._watch.stop()
        self._desk.drain()
        self._desk.excuse()
        self._maybe_leave()

    async def close(self) -> None:
        """Say the last words, once every task has ended here, and hang up."""
        if self.connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    await self._desk.settled()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        await self._desk.close()
        for one in self._tunnels:
            one.cancel()
        await self._background.wait()

    # The connection.

    async def _keep(self) -> None:
        """Dial, converse, and again, until that is over for good."""
        backoff = Backoff()
        while True:
            since = self._clock()
            try:
                leaving = await self._connection()
            except (aiohttp.ClientError, OSError, TimeoutError, BadRequest) as error:
                leaving = self._unanswered(error)
            except Exception:  # a fault of ours shall not make it an orphan
                log.exception("the link to the gateway")
                leaving = None
            if leaving is None:
                leaving = self._done()
            if leaving is not None:
                self._desk.abandon()
                self.left.set_result(leaving)
                return
            if self._clock() - since >= STEADY:
                backoff.reset()
            await asyncio.sleep(backoff.pause())

    def _unanswered(self, error: Exception) -> Leaving | None:
        """The gateway was not reached, or is none."""
        if isinstance(error, aiohttp.WSServerHandshakeError) and error.status == 401:
            return closed_for_good(WRONG_TOKEN, "", self._joining.url)
        if not self._unheard:
            self._unheard = True
            what = str(error) or type(error).__name__
            log.warning("no gateway at %s yet, trying again: %s", self._joining.url, what)
        return None

    def _done(self) -> Leaving | None:
        """Tell whether to end though the gateway did not say so just now."""
        if self._stopping and self._desk.empty:
            return Leaving("the platform wants it to stop, and nothing is left to do")
        limit = self._joining.orphan_timeout
        alone = self._clock() - self._alone_since
        if limit is not None and alone > limit and self._desk.idle:
            return Leaving(f"its gateway has not answered for {limit:g} s")
        return None

    async def _connection(self) -> Leaving | None:
        """One connection, from its beginning to its end. Raises what keeps it from being made."""
        async with asyncio.timeout(HANDSHAKE_TIMEOUT):
            socket = await self._http.ws_connect(
                self._joining.url + messages.PATH,
                heartbeat=HEARTBEAT,
                max_msg_size=messages.MAX_MESSAGE,
                timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
            )
        async with socket:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await socket.send_frame(messages.encode(self._hello()), WSMsgType.TEXT)
                first = await socket.receive()
            welcomed = first.type is WSMsgType.TEXT
            if welcomed:
                welcome = messages.from_gateway(first.data)
                if not isinstance(welcome, Welcome):
                    raise BadRequest("it answers with something else than a welcome")
                reason = await self._converse(socket, welcome)
            else:
                reason = str(first.extra or "") if first.type is WSMsgType.CLOSE else ""
            code = socket.close_code
        if code in FOR_GOOD:
            return closed_for_good(code, reason, self._joining.url)
        if not welcomed:
            raise BadRequest(f"it hangs up: {code} {reason}".rstrip())
        return None

    async def _converse(
        self, socket: aiohttp.ClientWebSocketResponse[bool], welcome: Welcome
    ) -> str:
        """Converse until the connection ends; returns the reason that the gateway gave."""
        self._outbox.reconnected()
        self._desk.reconnected()
        if self._stopping:
            self._desk.drain()
        self._on_welcome(welcome)
        self._unheard, self.connected = False, True
        with contextlib.suppress(OSError):  # nobody may be reading
            self._say(f"joined {welcome.service} at {self._joining.url} as {welcome.instance}")
        conversation = Conversation(
            socket,
            self._outbox,
            renew_seconds=welcome.renew_seconds,
            held=lambda: self._desk.held,
            lost=self._desk.lose,
            obey=self._obey,
            reports=self._watch.report_changes,
        )
        self._maybe_leave()
        try:
            await conversation.run(self._leave)
        finally:
            self.connected, self._alone_since = False, self._clock()
        return conversation.reason

    def _hello(self) -> Hello:
        joining = self._joining
        return Hello(
            instance=joining.instance,
            name=joining.name,
            boot=self._boot,
            easel=__version__,
            capacity=joining.capacity,
            engine=self._watch.look(),
            engine_url=joining.engine_url,
            agent_url=joining.agent_url,
            shares_storage=joining.shares_storage,
            device=joining.device,
            held=self._desk.held,
        )

    # What the gateway says.

    def _obey(self, said: FromGateway) -> None:
        match said:
            case messages.Assign():
                self._desk.assign(said)
            case messages.Acknowledge():
                self._outbox.acknowledged(said.n)
            case messages.Cancel():
                if work := self._desk.get(said.uid, said.lease):
                    self._desk.stop(work, Wish.CANCEL)
            case messages.Recall():
                if work := self._desk.get(said.uid, said.lease):
                    self._desk.stop(work, Wish.RECALL)
            case messages.Watch():
                if work := self._desk.get(said.uid):
                    work.previews = said.previews
            case messages.Drain():
                self._desk.drain()
                if said.stop:
                    self._stopping = True
                    self._watch.stop()
                    self._maybe_leave()
            case messages.Refresh():
                self._background.spawn(self._refresh(said))
            case messages.OpenTunnel():
                url = f"{self._joining.url}{messages.TUNNEL_PATH}/{said.id}"
                tunnel = self._background.spawn(carry(self._http, url, self._link.client.base_url))
                self._tunnels.add(tunnel)
                tunnel.add_done_callback(self._tunnels.discard)
            case _:
                pass

    async def _refresh(self, said: messages.Refresh) -> None:
        if not said.restart:
            self._link.forget_info()
        elif self._link.process is None:
            log.warning("the engine is not ours to restart: %s", said.reason)
        else:
            self._desk.excuse()
            await self._link.restart(said.reason or "was restarted on demand")

    def _maybe_leave(self) -> None:
        if self._stopping and self._desk.empty:
            self._leave.set()
