"""Devices that really exist: over MQTT, or through Home Assistant."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from voice_assistant.config import HomeTable
from voice_assistant.errors import DeviceError, EngineError
from voice_assistant.home import Action, Backend, Simulated

_TIMEOUT_S = 5


class Mqtt:
    """Publishes to `TOPIC/set` as Zigbee2MQTT reads it: {"state": "ON"}, {"brightness": 0..254}, and so on."""

    def __init__(self, table: HomeTable) -> None:
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise EngineError("paho-mqtt is not installed; pip install paho-mqtt") from error
        self._topics = {one.name: one.mqtt_topic for one in (*table.devices, *table.rooms)}
        self._where = f"{table.mqtt_host}:{table.mqtt_port}"
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.connect_timeout = _TIMEOUT_S
        try:
            self._client.connect(table.mqtt_host, table.mqtt_port)
        except OSError as error:
            raise DeviceError(f"no MQTT broker answers at {self._where}: {error}; see home.mqtt_host") from error
        self._client.loop_start()

    def apply(self, action: Action) -> None:
        sent = self._client.publish(f"{self._topics[action.target]}/set", json.dumps(_payload(action)), qos=1)
        try:
            sent.wait_for_publish(_TIMEOUT_S)
        except (ValueError, RuntimeError) as error:
            raise DeviceError(f"the broker at {self._where} does not take messages: {error}") from error
        if not sent.is_published():
            raise DeviceError(f"the broker at {self._where} does not answer")


def _payload(action: Action) -> dict[str, Any]:
    if action.degrees is not None:
        return {"occupied_heating_setpoint": action.degrees}
    payload: dict[str, Any] = {"state": {"locked": "LOCK", "unlocked": "UNLOCK", "closed": "CLOSE"}.get(
        action.state, action.state.upper())}  # fmt: skip
    if action.percent is not None:
        payload["brightness"] = round(254 * action.percent / 100)
    return payload


_SERVICES = {
    "on": "turn_on",
    "off": "turn_off",
    "locked": "lock",
    "unlocked": "unlock",
    "open": "open_cover",
    "closed": "close_cover",
}


class HomeAssistant:
    """Calls services over its REST API."""

    def __init__(self, table: HomeTable) -> None:
        self._url = table.url
        self._token = Path(table.token_path).read_text(encoding="utf-8").strip()
        self._entities = {one.name: one.entity_id for one in (*table.devices, *table.rooms)}

    def apply(self, action: Action) -> None:
        entity = self._entities[action.target]
        domain = entity.split(".")[0]
        data: dict[str, Any] = {"entity_id": entity}
        if action.degrees is not None:
            service, data["temperature"] = "set_temperature", action.degrees
        else:
            service = _SERVICES[action.state]
            if action.percent is not None:
                data["brightness_pct"] = action.percent
        self._post(f"/api/services/{domain}/{service}", data)

    def _post(self, path: str, data: dict[str, Any]) -> None:
        where = urlsplit(self._url)
        kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
        connection = kind(where.hostname or "", where.port, timeout=_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        try:
            connection.request("POST", where.path.rstrip("/") + path, json.dumps(data), headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise DeviceError(f"{self._url}: Home Assistant does not answer: {error}") from error
        finally:
            connection.close()
        if status not in (200, 201):
            raise DeviceError(f"{self._url}: {path}: status {status}; is the token valid?")


def open_backend(table: HomeTable) -> Backend:
    """The configured backend. Raises DeviceError or EngineError."""
    if table.backend == "mqtt":
        return Mqtt(table)
    if table.backend == "home_assistant":
        return HomeAssistant(table)
    return Simulated()
