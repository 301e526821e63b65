"""The parts of the server below the application: connections with clocks, sockets, what is refused at the start."""

import asyncio
import socket
import sys

import pytest
import torch
import uvicorn
from typer.testing import CliRunner

from hyenadna.cli import main
from hyenadna.errors import HyenaWarning, UsageError
from hyenadna.serve import connection, server
from hyenadna.serve.config import ServeConfig
from hyenadna.serve.connection import Connection

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def converse(client, answer: bytes = b"yes"):
    """What `client(reader, writer)` returns, of a connection to an application that answers everything alike."""

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"transfer-encoding", b"chunked")]})
        await send({"type": "http.response.body", "body": answer})

    async def run():
        config = uvicorn.Config(application, log_config=None, log_level="critical", ws="none", access_log=False)
        state = uvicorn.server.ServerState()
        listening = await asyncio.get_running_loop().create_server(
            lambda: Connection(config, state, {}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname(), limit=1 << 25)
        try:
            async with asyncio.timeout(20):
                return await client(reader, writer), state
        finally:
            writer.close()
            listening.close()

    return asyncio.run(run())


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection is closed or reset."""
    found = b""
    try:
        while part := await reader.read(1 << 16):
            found += part
    except ConnectionResetError:
        pass
    return found


class TestClocks:
    @pytest.mark.parametrize("sent", [b"", b"GET / HT", REQUEST[:-2]])
    def test_headers_must_come(self, monkeypatch, sent):
        monkeypatch.setattr(connection, "HEAD_SECONDS", 0.05)

        async def client(reader, writer):
            writer.write(sent)
            return await rest(reader)

        assert converse(client)[0] == b""

    def test_of_the_second_request_too(self, monkeypatch):
        monkeypatch.setattr(connection, "HEAD_SECONDS", 0.05)

        async def client(reader, writer):
            writer.write(REQUEST)
            assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.write(REQUEST[:-2])
            return await rest(reader)

        assert converse(client)[0] == b""

    def test_a_body_that_nobody_wants_is_not_read_for_ever(self, monkeypatch):
        monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)

        async def client(reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
            await reader.readuntil(b"yes")

            async def drip():
                while True:
                    writer.write(b" ")
                    await asyncio.sleep(0.01)

            dripping = asyncio.create_task(drip())
            found = await rest(reader)
            dripping.cancel()
            return found

        assert converse(client)[0] == b"\r\n0\r\n\r\n"

    def test_a_request_in_time_is_left_alone(self, monkeypatch):
        monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)

        async def client(reader, writer):
            for _ in range(3):
                writer.write(REQUEST)
                assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")
                await asyncio.sleep(0.2)
            return True

        assert converse(client)[0]

    def test_an_answer_must_be_read(self, monkeypatch):
        monkeypatch.setattr(connection, "READ_SECONDS", 0.1)

        async def client(reader, writer):
            writer.transport.pause_reading()
            writer.write(REQUEST)
            await asyncio.sleep(0.5)
            writer.transport.resume_reading()
            return len(await rest(reader))

        size = 20_000_000
        found, state = converse(client, b"x" * size)
        assert found < size and not state.connections

    def test_one_that_is_read_slowly_comes_whole(self, monkeypatch):
        monkeypatch.setattr(connection, "READ_SECONDS", 0.5)

        async def client(reader, writer):
            writer.write(REQUEST)
            found = 0
            while found < size:
                found += len(await reader.read(1 << 19))
                await asyncio.sleep(0.02)
            return found

        size = 20_000_000
        assert converse(client, b"x" * size)[0] >= size


class TestStart:
    def refused(self, **config):
        with pytest.raises(UsageError) as caught:
            server.serve("starter", ServeConfig(**config))
        return str(caught.value)

    @pytest.fixture(autouse=True)
    def _without_a_model(self, monkeypatch):
        def load(*_):
            raise AssertionError("the model is loaded before it is known that it can be served")

        monkeypatch.setattr(server.ServedModel, "load", load)

    def test_a_port_that_is_taken(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert self.refused(port=port).startswith(f"--host 127.0.0.1 --port {port}: Address already in use; --port")

    def test_a_port_that_another_server_took_and_still_loads_its_model(self):
        with server._bound("127.0.0.1", 0) as taken:
            assert "Address already in use" in self.refused(port=taken.getsockname()[1])

    def test_an_address_of_another_machine(self, tmp_path):
        (tmp_path / "token").write_text("0123456789abcdef")
        (tmp_path / "token").chmod(0o600)
        given = {"host": "192.0.2.1", "token_file": tmp_path / "token"}
        assert "--host 192.0.2.1 --port 8000: Cannot assign requested address" in self.refused(**given)

    def test_a_token_that_is_none(self, tmp_path):
        assert "cannot be read" in self.refused(token_file=tmp_path / "none")

    @pytest.mark.parametrize(("dtype", "count"), [("auto", 0), ("float32", 0), ("bfloat16", 1), ("float16", 1)])
    def test_a_dtype_that_is_slow_here_is_told(self, monkeypatch, recwarn, dtype, count):
        monkeypatch.setattr(server.ServedModel, "load", lambda *given: given)
        threads = torch.get_num_threads()
        *_, device, loaded = server._loaded("starter", ServeConfig(device="cpu", dtype=dtype, threads=threads))
        assert (str(device), loaded) == ("cpu", torch.float32 if dtype == "auto" else getattr(torch, dtype))
        told = [str(one.message) for one in recwarn if one.category is HyenaWarning]
        assert len(told) == count
        assert all(text.startswith(f"--dtype {dtype} on a CPU: unless the processor") for text in told)

    def test_without_the_extra(self, monkeypatch):
        for name in [name for name in sys.modules if name.startswith("hyenadna.serve.server")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr("hyenadna.serve.server")
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        ran = CliRunner().invoke(main.app, ["serve"])
        assert ran.exit_code == 1
        assert ran.stderr == "hyena: hyena serve needs the 'serve' extra: pip install hyenadna[serve]\n"
