"""Real devices: an MQTT broker that runs, and Home Assistant's REST API as its documentation has it."""

from __future__ import annotations

import http.server
import json
import queue
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from voice_assistant.config import DeviceTable, HomeTable, RoomTable
from voice_assistant.devices import open_backend
from voice_assistant.errors import DeviceError
from voice_assistant.home import Home, ToolCall

DEVICES = (
    DeviceTable(name="desk lamp", kind="light", mqtt_topic="zigbee2mqtt/desk", entity_id="light.desk"),
    DeviceTable(name="front door", kind="door", mqtt_topic="zigbee2mqtt/door", entity_id="lock.front_door"),
    DeviceTable(name="bedroom blind", kind="cover", mqtt_topic="zigbee2mqtt/blind", entity_id="cover.blind"),
)
ROOMS = (RoomTable(name="kitchen", mqtt_topic="zigbee2mqtt/heating", entity_id="climate.kitchen"),)
CALLS = (
    ToolCall("turn_on", {"device": "desk lamp"}),
    ToolCall("set_brightness", {"device": "desk lamp", "percent": 50}),
    ToolCall("lock", {"device": "front door"}),
    ToolCall("close", {"device": "bedroom blind"}),
    ToolCall("set_temperature", {"room": "kitchen", "degrees": 19}),
)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[int]:
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    assert program, "mosquitto is not installed; .ci/setup test"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (tmp_path / "broker.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    with subprocess.Popen([program, "-c", tmp_path / "broker.conf"], stderr=subprocess.DEVNULL) as process:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.05)
        yield port
        process.terminate()


def test_devices_are_switched_over_mqtt(broker: int) -> None:
    got: queue.Queue[tuple[str, object]] = queue.Queue()

    def take(client: Client, data: object, message: MQTTMessage) -> None:
        got.put((message.topic, json.loads(message.payload)))

    listener = Client(CallbackAPIVersion.VERSION2)
    listener.on_message = take
    listener.connect("127.0.0.1", broker)
    ready = threading.Event()
    listener.on_subscribe = lambda *_: ready.set()
    listener.subscribe("zigbee2mqtt/#", qos=1)
    listener.loop_start()
    assert ready.wait(20)
    home_table = HomeTable(backend="mqtt", mqtt_port=broker, devices=DEVICES, rooms=ROOMS)
    home = Home(home_table, open_backend(home_table))
    assert [home.call(call) for call in CALLS] == [None] * len(CALLS)
    assert [got.get(timeout=20) for _ in CALLS] == [
        ("zigbee2mqtt/desk/set", {"state": "ON"}),
        ("zigbee2mqtt/desk/set", {"state": "ON", "brightness": 127}),
        ("zigbee2mqtt/door/set", {"state": "LOCK"}),
        ("zigbee2mqtt/blind/set", {"state": "CLOSE"}),
        ("zigbee2mqtt/heating/set", {"occupied_heating_setpoint": 19}),
    ]
    listener.loop_stop()
    listener.disconnect()


def test_no_broker_is_said_in_a_line() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with pytest.raises(DeviceError, match=f"no MQTT broker answers at 127.0.0.1:{port}.*home.mqtt_host"):
        open_backend(HomeTable(backend="mqtt", mqtt_port=port))


class Hub(http.server.BaseHTTPRequestHandler):
    """Takes what Home Assistant takes, with one token."""

    calls: list[tuple[str, object]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        good = self.headers["Authorization"] == "Bearer secret"
        if good:
            self.calls.append((self.path, body))
        self.send_response(200 if good else 401)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *arguments: object) -> None:
        pass


def test_devices_are_switched_through_home_assistant(tmp_path: Path) -> None:
    Hub.calls = []
    (tmp_path / "token").write_text("secret\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        table = HomeTable(
            backend="home_assistant",
            url=f"http://127.0.0.1:{server.server_address[1]}",
            token_path=str(tmp_path / "token"),
            devices=DEVICES,
            rooms=ROOMS,
        )
        home = Home(table, open_backend(table))
        assert [home.call(call) for call in CALLS] == [None] * len(CALLS)
        (tmp_path / "token").write_text("wrong\n")
        assert Home(table, open_backend(table)).call(CALLS[0]) == "no answer"
        server.shutdown()
    assert Hub.calls == [
        ("/api/services/light/turn_on", {"entity_id": "light.desk"}),
        ("/api/services/light/turn_on", {"entity_id": "light.desk", "brightness_pct": 50}),
        ("/api/services/lock/lock", {"entity_id": "lock.front_door"}),
        ("/api/services/cover/close_cover", {"entity_id": "cover.blind"}),
        ("/api/services/climate/set_temperature", {"entity_id": "climate.kitchen", "temperature": 19}),
    ]
