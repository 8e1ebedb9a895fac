"""The systemd unit of a served model: systemd.service(5), systemd.exec(5), systemd.resource-control(5)."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.board_session import root_of
from edgellm.errors import UnsuitableError
from edgellm.runtime_program import PROGRAM

_PLAIN = re.compile(r"[A-Za-z0-9/._@+=:,-]+")
"""Words that mean themselves in a unit: no blanks, no specifiers (%), no variables ($)."""
_RUNTIME_BYTES = 128 << 20  # program, stacks, tokenizer, and requests: 16 MB received, up to 96 MB while one is read
_SLACK = 1.25
_PAGE_ROUND = 1 << 20
HARDENED = """\
DevicePolicy=closed
ProtectSystem=strict
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
UMask=0077
"""
"""What no service of ours needs: nothing to write, no capability, no device, no unusual system call."""

DEFAULT_SESSIONS = 4
DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class UnitOptions:
    """user: whose home has the model; own_user: systemd makes a user for the service, else it is `user`.

    keep: sessions outlive the server, in a folder that systemd makes for it: /var/lib/edgellm/MODEL.
    """

    home: str
    user: str
    model: str
    port: int
    options: tuple[str, ...]
    memory_max_bytes: int
    own_user: bool
    has_key: bool
    keep: bool = False


def unit_name(model: str) -> str:
    return f"edgellm-{model}.service"


def memory_max_bytes(manifest: Mapping[str, Any], sessions: int | None, context: int | None) -> int:
    """What the service may take: weights, arena, the KV caches of all sessions, and a quarter more."""
    memory, model = manifest.get("memory", {}), manifest.get("model", {})
    longest = min(int(model.get("context_length", DEFAULT_CONTEXT)), context or DEFAULT_CONTEXT)
    each = int(memory.get("kv_bytes_per_token", 0)) * longest + int(memory.get("state_bytes_per_session", 0))
    kv = each * (sessions or DEFAULT_SESSIONS)
    needed = int(memory.get("weight_bytes", 0)) + int(memory.get("arena_bytes", 0)) + kv + _RUNTIME_BYTES
    return -(-int(needed * _SLACK) // _PAGE_ROUND) * _PAGE_ROUND


def unit_text(o: UnitOptions) -> str:
    """The unit. Raises UnsuitableError where a path could not be written into one."""
    root = root_of(o.home)
    slot = posixpath.join(root, "models", o.model, "current")
    state = posixpath.join("edgellm", o.model)
    kept = ("--keep", posixpath.join("/var/lib", state)) if o.keep else ()
    command = [posixpath.join(root, PROGRAM), "serve", slot, "--port", str(o.port), *o.options, *kept]
    for word in (*command, o.user):
        if not _PLAIN.fullmatch(word):
            raise UnsuitableError(
                f"'{word}' cannot stand in a systemd unit; use a home and a name without such characters"
            )
    who = "DynamicUser=yes" if o.own_user else f"User={o.user}"
    folder = f"StateDirectory={state}\nStateDirectoryMode=0700\n" if o.keep else ""
    key = f"LoadCredential=weights.key:{root}/weights.key\n" if o.has_key else ""
    return f"""\
# Made by `edgellm service install`; `edgellm service remove` takes it away.
[Unit]
Description=edgellm: the model {o.model}
After=network.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={_line(command)}
Restart=on-failure
RestartSec=2
RestartSteps=6
RestartMaxDelaySec=60
WatchdogSec=180
TimeoutStartSec=900
TimeoutStopSec=30
MemoryMax={o.memory_max_bytes}
OOMScoreAdjust=-500
LimitMEMLOCK=infinity
{key}{folder}{who}
BindReadOnlyPaths={root}
ProtectHome=tmpfs
PrivateDevices=yes
RemoveIPC=yes
IPAddressDeny=any
IPAddressAllow=localhost
{HARDENED}
[Install]
WantedBy=multi-user.target
"""


def _line(words: Sequence[str]) -> str:
    return " ".join(words)
