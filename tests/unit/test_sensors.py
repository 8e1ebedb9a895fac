"""The sensors' script in a real shell over a tree like /sys, and what is made of its lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.local_remote import LocalRemote
from edgellm.sensors import Log, Reading, Sampler, joules_between, slowed_down


def tree(root: Path, **files: str) -> None:
    for path, content in files.items():
        file = root / "sys" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")


def sample(root: Path, path: Path | None = None) -> Log:
    """The log after two readings of the real script."""
    environment = {} if path is None else {"PATH": f"{path}:/usr/bin:/bin"}
    with Sampler(LocalRemote(environment=environment), 0.05, str(root)) as sampler:
        while len(sampler.log.readings) < 2:
            sampler.collect(10)
        return sampler.log


def test_nothing_there_is_said_and_nothing_invented(tmp_path):
    log = sample(tmp_path)
    assert log.power is None
    assert "no sensor of power or energy" in log.why_no_power()
    reading = log.readings[-1]
    assert (reading.temp_c, reading.clock_hz, reading.throttled, reading.joules, reading.watts) == (None,) * 5


def test_a_raspberry_pi(tmp_path):
    tree(tmp_path, **{
        "class/thermal/thermal_zone0/type": "cpu-thermal",
        "class/thermal/thermal_zone0/temp": "65321",
        "class/thermal/cooling_device0/type": "pwm-fan",
        "class/thermal/cooling_device0/cur_state": "4",
        "devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1800000",
        "devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "2400000",
        "devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand",
    })  # fmt: skip
    program = tmp_path / "bin" / "vcgencmd"
    program.parent.mkdir()
    program.write_text("""#!/bin/sh
case $1 in
get_throttled) echo throttled=0x50005 ;;
pmic_read_adc)
    echo '     3V3_SYS_A current(1)=0.50000000A'
    echo '     VDD_CORE_A current(7)=2.00000000A'
    echo '     3V3_SYS_V volt(9)=3.30000000V'
    echo '     VDD_CORE_V volt(15)=0.80000000V'
    echo '     EXT5V_V volt(24)=5.10000000V' ;;
esac
""")
    program.chmod(0o755)
    log = sample(tmp_path, program.parent)
    assert log.power is not None
    assert "pmic_read_adc" in log.power
    first, second = log.readings[:2]
    assert second.temp_c == pytest.approx(65.321)
    assert (second.clock_hz, log.max_clock_hz, log.governor) == (1.8e9, 2.4e9, "ondemand")
    assert second.watts == pytest.approx(0.5 * 3.3 + 2 * 0.8)  # EXT5V has no current: it is what comes in
    assert second.joules == pytest.approx(3.25 * (second.at_s - first.at_s))
    assert second.cooling == 0  # a fan does not slow anything down
    assert slowed_down(log.readings) == ["under-voltage", "throttled"]


def test_an_energy_counter(tmp_path):
    tree(tmp_path, **{
        "class/powercap/intel-rapl:0/name": "package-0",
        "class/powercap/intel-rapl:0/energy_uj": "1000000",
        "class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
        "class/powercap/intel-rapl:0:0/name": "core",
        "class/powercap/intel-rapl:0:0/energy_uj": "500000",
        "class/hwmon/hwmon0/name": "coretemp",
        "class/hwmon/hwmon0/temp1_input": "51000",
    })  # fmt: skip
    log = sample(tmp_path)
    assert log.power is not None
    assert "package-0 (RAPL" in log.power
    assert log.readings[-1].joules == 0  # it stands still
    assert log.readings[-1].temp_c == 51


def test_jetsons_total_rail_is_meant(tmp_path):
    tree(tmp_path, **{
        "class/hwmon/hwmon2/name": "ina3221",
        "class/hwmon/hwmon2/in1_label": "VDD_CPU_GPU_CV",
        "class/hwmon/hwmon2/in1_input": "5000",
        "class/hwmon/hwmon2/curr1_input": "400",
        "class/hwmon/hwmon2/in2_label": "VDD_IN",
        "class/hwmon/hwmon2/in2_input": "5000",
        "class/hwmon/hwmon2/curr2_input": "1000",
    })  # fmt: skip
    log = sample(tmp_path)
    assert log.power == "VDD_IN (power sensor of the board)"
    assert log.readings[-1].watts == pytest.approx(5.0)  # mV × mA


def test_an_ina_with_its_own_power(tmp_path):
    tree(tmp_path, **{"class/hwmon/hwmon0/name": "ina226", "class/hwmon/hwmon0/power1_input": "3500000",
                      "class/hwmon/hwmon0/in1_input": "5000", "class/hwmon/hwmon0/curr1_input": "700"})  # fmt: skip
    log = sample(tmp_path)
    assert log.readings[-1].watts == pytest.approx(3.5)
    assert log.power == "ina226.1 (power sensor of the board)"


def test_counters_that_start_again_are_seen_through():
    log = Log()
    for line in ("H energy 0 1000000 package-0", "S 1.0 energy.0=900000", "S 2.0 energy.0=100000"):
        log.feed(line)
    assert log.readings[-1].joules == pytest.approx(0.2)


def test_rubbish_is_left_out():
    log = Log()
    for line in (
        "", "S", "S x", "S -5 temp=1", "motd: welcome", "H", "H energy", "H rail", "P VDD_A current(0)=1.0",
        "S 1.0 temp=99999999 temp=45000 clock=1 throttled=zz energy.0=\x1b[2J cooling=-3 joules=7 rail.9=5",
        "S 0.5 temp=50000",
        f"S 2.0 temp={'9' * 5000}",
    ):  # fmt: skip
        log.feed(line)
    assert log.readings == [Reading(1.0, 45.0), Reading(2.0)]  # time does not run backwards
    log.feed("H energy 0 5 \x1b[31mred")
    assert log.power is not None
    assert "\x1b" not in log.power


def test_a_counter_that_only_root_may_read_is_named():
    log = Log()
    log.feed("H unreadable package-0")
    assert "package-0 is there, but only root may read it" in log.why_no_power()


def test_energy_between_two_times():
    readings = [Reading(float(t), joules=2.0 * t * t) for t in range(5)]
    assert joules_between(readings, 1, 3) == pytest.approx(16)
    assert joules_between(readings, 1.5, 2) == pytest.approx(8 - 5)
    assert joules_between(readings, 3, 4.5) is None  # nobody has looked yet
    assert joules_between(readings[:1], 0, 0) is None


def test_what_slows_a_processor_down():
    assert slowed_down([Reading(0, throttled=0x50000), Reading(1, throttled=0x50000)]) == []  # long ago
    assert slowed_down([Reading(0, cooling=0), Reading(1, cooling=2)]) == ["slowed down against heat"]
    assert slowed_down([Reading(0, count=5), Reading(1, count=8)]) == ["3 throttling events"]
