"""The systemd unit of an application: systemd.service(5), systemd.exec(5).

It runs as the user who deployed it, whose sound server, devices and files it may need; it can write nowhere but in its
own /tmp, has no capability, no device but sound, and none of the system calls that services do not need. The network
stays open, for the devices of a home are there.
"""

from __future__ import annotations

import re

from edgellm.application import Application
from edgellm.errors import UnsuitableError
from edgellm.unit import HARDENED, unit_name

_READY = """\
Type=notify
TimeoutStartSec=600
WatchdogSec=90
"""


def unit_text(folder: str, app: Application, user: str, model: str) -> str:
    """The unit of `app` in `folder` on the board. Raises UnsuitableError where a path cannot be written into one."""
    if not re.fullmatch(r"[A-Za-z0-9/._@+=:,-]+", folder + user):
        raise UnsuitableError(f"'{folder}' cannot stand in a systemd unit; use a home without such characters")
    return f"""\
# Made by `edgellm deploy --app {app.name}`; `edgellm undeploy --app {app.name}` takes it away.
[Unit]
Description=edgellm: the application {app.name}
After=sound.target {unit_name(model)}
Wants={unit_name(model)}
StartLimitIntervalSec=0

[Service]
{_READY if app.notifies else ""}ExecStart={folder}/current/run {folder}/config.toml
Restart=always
RestartSec=5
User={user}
SupplementaryGroups=audio
Nice=-5
MemoryMax=700M
DeviceAllow=char-alsa rw
ProtectHome=read-only
{HARDENED}
[Install]
WantedBy=multi-user.target
"""
