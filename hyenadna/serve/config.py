"""What `hyena serve` may be told; its fields are the command's flags."""

import dataclasses
import ipaddress
import math
from pathlib import Path
from typing import Literal

from hyenadna.errors import UsageError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Where the server listens, what it serves, and how much it takes on."""

    adapter: tuple[str, ...] = ()
    """Fine-tuned models to serve besides, each as NAME=PATH; requests say the name."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own (127.0.0.1, ::1, localhost) needs --token-file."""
    port: int = 8000
    """Port to listen on; 0 takes a free one and says which."""
    token_file: Path | None = None
    """File with the access token, at least 16 characters, that every request but /health must show: as Authorization:
    Bearer, or as the password that a browser asks for. Only its owner and group may be able to read it."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Dtype = "auto"
    """What the model computes in; auto is float32."""
    threads: int | None = None
    """CPU threads. Default: the CPUs this process may use."""
    batch_tokens: int | None = None
    """Tokens of a batch. Default: 4096, on a GPU 131072; changes no result. Fewer let short requests pass sooner."""
    wait_ms: float = 5.0
    """Milliseconds that an idle server waits for requests to share a batch with the first."""
    queue_tokens: int = 1 << 23
    """Tokens that may wait; requests above it are told to come back (429)."""
    deadline: float = 120.0
    """Seconds that a request may take (504); a request may ask for less by timeout_s."""
    max_body: int = 1 << 23
    """Bytes of a request's body (413)."""
    max_sequences: int = 1024
    """Sequences of a request (413)."""
    max_bases: int = 1_000_000
    """Bases of a sequence (413)."""
    max_request_tokens: int = 1 << 22
    """Tokens that a request may cost the model (413). All substitutions of L bases cost many times L."""
    max_generate: int = 1 << 16
    """Tokens that a request may write on at once (413): prompt and length together, for each of its sequences."""
    generating_tokens: int = 1 << 18
    """The same of all requests together (429), because the model keeps these tokens in memory."""

    def __post_init__(self) -> None:
        counts = ("batch_tokens", "queue_tokens", "max_body", "max_sequences", "max_bases", "max_request_tokens")
        for name in ("threads", *counts, "max_generate", "generating_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{_flag(name)} is {value}; it must be at least 1")
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"--port is {self.port}; it must be from 0, a free one, to 65535")
        if not 0 <= self.wait_ms <= 1000:
            raise UsageError(f"--wait-ms is {self.wait_ms}; it must be from 0 to 1000")
        if not (math.isfinite(self.deadline) and self.deadline > 0):
            raise UsageError(f"--deadline is {self.deadline}; it must be a number of seconds above 0")
        for one, all_of_them in (("max_request_tokens", "queue_tokens"), ("max_generate", "generating_tokens")):
            if getattr(self, one) > getattr(self, all_of_them):
                raise UsageError(
                    f"{_flag(one)} {getattr(self, one)} is more than {_flag(all_of_them)} "
                    f"{getattr(self, all_of_them)}: such a request could never be taken"
                )
        if not self.on_loopback and self.token_file is None:
            raise UsageError(
                f"--host {self.host} can be reached from other machines: give --token-file, or leave --host out "
                "to serve this machine alone"
            )
        _folders(self.adapter)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server. A name other than localhost may stand for any machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def adapters(self) -> dict[str, Path]:
        """Folder of each adapter, by its name."""
        return _folders(self.adapter)


def _folders(arguments: tuple[str, ...]) -> dict[str, Path]:
    """The folder of each name, of arguments NAME=PATH.

    Raises
    ------
    UsageError              an argument of another form, or a name given twice
    """
    folders: dict[str, Path] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (name and equals and path):
            raise UsageError(f"--adapter {argument!r}: it takes NAME=PATH, such as promoters=hyena-finetune")
        if name in folders:
            raise UsageError(f"--adapter {argument!r}: the name {name!r} is taken already; give it another one")
        folders[name] = Path(path)
    return folders


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
