"""The process that serves: its socket, its model, uvicorn, and how it ends."""

import asyncio
import os
import signal
import socket
import warnings
from types import FrameType
from typing import Any

import uvicorn

from hyenadna.errors import HyenaError, HyenaWarning, Interrupted, UsageError
from hyenadna.progress import notice
from hyenadna.serve.application import application
from hyenadna.serve.batcher import Batcher
from hyenadna.serve.config import ServeConfig
from hyenadna.serve.connection import Connection
from hyenadna.serve.security import read_token
from hyenadna.serve.served_model import ServedModel
from hyenadna.serve.service import Service

_BATCH_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 17}
_LAST_SECONDS = 5
"""For what is not work of ours when the server ends: bodies that are still being sent, answers that nobody reads."""


def serve(source: str, config: ServeConfig) -> None:
    """Serve a model until a signal ends it.

    Parameters
    ----------
    source : str
        Model folder, run of a pretraining or fine-tuning, hub id or 'starter'.
    config : ServeConfig

    Raises
    ------
    UsageError              a port that is taken, an address that is not this machine's, a token that cannot be used
    Interrupted             SIGTERM or SIGINT, after all work that was taken on is answered; before it listens, the
                            command's own
    CheckpointError, ProbeError, HubError
                            the model or an adapter cannot be had
    """
    token = None if config.token_file is None else read_token(config.token_file)
    # before the model is loaded, which takes longer than to find that the port is taken
    with _bound(config.host, config.port) as listening:
        model = _loaded(source, config)
        batcher = Batcher(
            model,
            batch_tokens=config.batch_tokens or _BATCH_TOKENS[model.network.device.type],
            queue_tokens=config.queue_tokens,
            generating_tokens=config.generating_tokens,
            wait_ms=config.wait_ms,
        )
        service = Service(model, batcher, config)
        server = _Server(service, token, listening)
        asyncio.run(server.run_until_signal())
    if server.signal_number is None:
        raise HyenaError("the server ended without being told to")
    raise Interrupted(server.signal_number, f"stopped by {signal.Signals(server.signal_number).name}; all is answered")


def _loaded(source: str, config: ServeConfig) -> ServedModel:
    import torch

    from hyenadna.machine import available_cpus, torch_device

    torch.set_num_threads(config.threads or available_cpus())
    dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
    device = torch_device(config.device)
    if device.type == "cpu" and dtype != torch.float32:
        warnings.warn(
            f"--dtype {config.dtype} on a CPU: unless the processor multiplies such numbers itself, sequences are read "
            "several times slower than in float32; leave --dtype out",
            HyenaWarning,
            stacklevel=2,
        )
    return ServedModel.load(source, config.adapters, device, dtype)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the address for itself; who comes before the model is loaded waits."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # a second server that still loads its model may have bound the address, too, but not listen at it
        bound.listen()
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: {error.strerror}; --port 0 takes a free port") from error
    return bound


class _Server(uvicorn.Server):
    """uvicorn that, at the first signal, refuses new work while it finishes what it has, and at the second one ends."""

    def __init__(self, service: Service, token: bytes | None, listening: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                application(service, token),
                loop="asyncio",
                http=Connection,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                # what uvicorn tells of a request, our own line tells
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_LAST_SECONDS,
            )
        )
        self.signal_number: int | None = None
        self._service, self._listening = service, listening
        self._stopping: asyncio.Task[None] | None = None

    async def run_until_signal(self) -> None:
        """Serve, and return once everything is answered."""
        self._loop = asyncio.get_running_loop()
        await self._service.batcher.start()
        await self.serve([self._listening])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        host, port = self._listening.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        notice(f"serving {self._service.model.name} at http://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> Any:
        """Of uvicorn: called for SIGINT and SIGTERM."""
        if self.signal_number is not None:
            os._exit(128 + sig)
        self.signal_number = sig
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        notice("hyena: stopping: no new requests; a second signal ends at once")
        self._stopping = self._loop.create_task(self._drained())

    async def _drained(self) -> None:
        try:
            await self._service.drain()
        finally:
            self.should_exit = True
