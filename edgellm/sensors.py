"""A board's sensors while something runs on it: temperature, clock, throttling and power, about once a second.

A shell script on the board reads what Linux and the firmware offer. Sources: Linux' Documentation/power/powercap
(energy in µJ), Documentation/hwmon/sysfs-interface.rst (power in µW, in_ in mV, curr_ in mA), the thermal sysfs API,
and Raspberry Pi's `vcgencmd` (get_throttled's bits; pmic_read_adc of the Pi 5). Nothing that comes back is trusted:
what is no number in a plausible range counts as not read.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgellm.remote import Remote, shell_argv
from edgellm.terminal import one_line

_SCRIPT = r"""
set +e; root=$1; period=$2
get() { v=; { read -r v <"$1" || [ -n "$v" ]; } 2>/dev/null; }
cpu=; other=; clocks=; cooling=; counts=; energy=; rails=; n=0
for zone in "$root"/sys/class/thermal/thermal_zone*; do
    get "$zone/type" || continue
    case $v in *[Cc][Pp][Uu]*|*soc*|*pkg*|*core*) cpu="$cpu $zone/temp" ;; *) other="$other $zone/temp" ;; esac
done
for chip in "$root"/sys/class/hwmon/hwmon*; do
    get "$chip/name" || continue
    case $v in
    k10temp|coretemp|zenpower) cpu="$cpu $chip/temp1_input" ;;
    ina*|power_meter)
        name=$v
        for i in 1 2 3; do
            for file in "$chip/power${i}_input" "$chip/power${i}_average"; do
                get "$file" || continue
                get "$chip/power${i}_label" || v=$name.$i
                echo "H rail $n $v"; rails="$rails $n $file -"; n=$((n + 1))
            done
            get "$chip/curr${i}_input" && get "$chip/in${i}_input" || continue
            [ -e "$chip/power${i}_input" ] && continue
            get "$chip/in${i}_label" || v=$name.$i
            echo "H rail $n $v"; rails="$rails $n $chip/curr${i}_input $chip/in${i}_input"; n=$((n + 1))
        done ;;
    esac
done
for policy in "$root"/sys/devices/system/cpu/cpufreq/policy*; do
    get "$policy/scaling_cur_freq" && clocks="$clocks $policy/scaling_cur_freq"
    get "$policy/cpuinfo_max_freq" && echo "H max_clock $v"
    get "$policy/scaling_governor" && echo "H governor $v"
done
for device in "$root"/sys/class/thermal/cooling_device*; do
    get "$device/type" || continue
    case $v in *cpufreq*|Processor*) cooling="$cooling $device/cur_state" ;; esac
done
for file in "$root"/sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count; do
    get "$file" && counts="$counts $file"
done
n=0
for zone in "$root"/sys/class/powercap/intel-rapl:*; do
    get "$zone/name" || continue
    case $v in package-*) ;; *) continue ;; esac
    name=$v
    if get "$zone/energy_uj"; then
        get "$zone/max_energy_range_uj"
        echo "H energy $n $v $name"; energy="$energy $n $zone/energy_uj"; n=$((n + 1))
    else
        echo "H unreadable $name"
    fi
done
firmware=; adc=
for file in "$root"/sys/devices/platform/soc*/soc*:firmware/get_throttled; do get "$file" && firmware=$file; done
if command -v vcgencmd >/dev/null 2>&1; then
    case $(vcgencmd pmic_read_adc 2>/dev/null) in *current*) adc=1; echo "H adc" ;; esac
    [ -n "$firmware" ] || case $(vcgencmd get_throttled 2>/dev/null) in throttled=*) firmware=vcgencmd ;; esac
fi
[ -n "$cpu" ] || cpu=$other
while :; do
    [ -z "$adc" ] || vcgencmd pmic_read_adc 2>/dev/null | while read -r line; do echo "P $line"; done
    get /proc/uptime || exit
    line="S ${v%% *}"
    for file in $cpu; do get "$file" && line="$line temp=$v"; done
    for file in $clocks; do get "$file" && line="$line clock=$v"; done
    for file in $cooling; do get "$file" && line="$line cooling=$v"; done
    for file in $counts; do get "$file" && line="$line count=$v"; done
    if [ "$firmware" = vcgencmd ]; then v=$(vcgencmd get_throttled 2>/dev/null); line="$line ${v:-none=0}"
    elif [ -n "$firmware" ]; then get "$firmware" && line="$line throttled=$v"; fi
    set -- $energy
    while [ $# -gt 0 ]; do get "$2" && line="$line energy.$1=$v"; shift 2; done
    set -- $rails
    while [ $# -gt 0 ]; do
        if [ "$3" = - ]; then get "$2" && line="$line rail.$1=$v"
        elif get "$2"; then current=$v; get "$3" && line="$line rail.$1=$((current * v))"; fi
        shift 3
    done
    echo "$line" || exit
    sleep "$period"
done
"""

BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "temperature limit"}
"""Of vcgencmd get_throttled: now; the same plus 16 mean since the board booted (Raspberry Pi documentation)."""

_TOTALS = ("VDD_IN", "POM_5V_IN", "SYS5V", "VIN_SYS_5V0")
"""Rails of Jetson boards' sensors that feed all others (Jetson Linux developer guide)."""

Values = Callable[[str, float, float], list[float]]
"""(key, low, high) -> the values of a sample's key that lie between."""

_LINE_CAP = 64 * 1024
_START_S = 20.0
_ADC = re.compile(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=(\d+\.\d+)[AV]$")
_WORD = re.compile(r"[a-z]+(?:\.\d+)?=(?:0x)?[0-9a-f-]{1,20}$")


@dataclass(frozen=True)
class Reading:
    """What the sensors said at one time; None or 0 where there is none.

    at_s       since the board booted
    temp_c     of the hottest sensor of the processor
    clock_hz   of the fastest core
    throttled  get_throttled's bits
    cooling    highest state of a cooling device that slows the processor down
    count      throttling events that x86 processors have counted
    joules     counted since the first reading, by an energy counter or from the power
    watts      of a power sensor
    """

    at_s: float
    temp_c: float | None = None
    clock_hz: float | None = None
    throttled: int | None = None
    cooling: int = 0
    count: int = 0
    joules: float | None = None
    watts: float | None = None


@dataclass
class Log:
    """Turns the script's lines into readings. power: what is measured and by what; None without a sensor."""

    readings: list[Reading] = field(default_factory=list)
    power: str | None = None
    unreadable: list[str] = field(default_factory=list)
    governor: str | None = None
    max_clock_hz: float | None = None
    _ranges: dict[str, float] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _adc: dict[str, dict[str, float]] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)
    _joules: float = 0.0

    def feed(self, line: str) -> None:
        """One line of the script's; what is not understood is left out."""
        kind, _, rest = line.partition(" ")
        if kind == "H":
            self._have(rest.split())
        elif kind == "P":
            if match := _ADC.match(rest.strip()):
                self._adc.setdefault(match[1], {})[match[2]] = float(match[3])
        elif kind == "S":
            self._sample(rest.split())

    def why_no_power(self) -> str:
        """One sentence for people, where `power` is None."""
        if self.unreadable:
            return (
                f"the energy counter {', '.join(self.unreadable)} is there, but only root may read it; let the board's "
                "user read /sys/class/powercap/*/energy_uj to see tokens per joule"
            )
        return "no sensor of power or energy was found, so there are no tokens per joule"

    def _have(self, words: list[str]) -> None:
        what, rest = words[:1], words[1:]
        label = one_line(" ".join(rest[1:]), 40)
        if what == ["energy"] and len(rest) >= 3:
            self._ranges[rest[0]] = _number(rest[1], 0, 1e18) or 0.0
            self._names["energy." + rest[0]] = one_line(rest[2], 40)
            names = [name for key, name in self._names.items() if key.startswith("energy.")]
            self.power = f"{', '.join(names)} (RAPL: processor and its memory controller, not the whole machine)"
        elif what == ["rail"] and len(rest) >= 2:
            self._names["rail." + rest[0]] = label
            if not self._ranges:
                self.power = f"{self._names[self._rail()]} (power sensor of the board)"
        elif what == ["adc"] and not self._ranges and self.power is None:
            self.power = "all rails of the power controller (vcgencmd pmic_read_adc; without what hangs on USB)"
        elif what == ["unreadable"] and rest:
            self.unreadable.append(one_line(rest[0], 40))
        elif what == ["governor"] and rest:
            self.governor = one_line(rest[0], 40)
        elif what == ["max_clock"] and rest:
            self.max_clock_hz = max(self.max_clock_hz or 0.0, 1e3 * (_number(rest[0], 1e3, 1e8) or 0.0)) or None

    def _rail(self) -> str:
        """The rail that stands for the board: one that feeds the others, else the first."""
        rails = {key: name for key, name in self._names.items() if key.startswith("rail.")}
        return next((key for key, name in rails.items() if name in _TOTALS), min(rails))

    def _sample(self, words: list[str]) -> None:
        at_s = _number(words[0], 0, 1e10) if words else None
        if at_s is None or (self.readings and at_s < self.readings[-1].at_s):
            return
        found: dict[str, list[str]] = {}
        for word in words[1:]:
            if _WORD.match(word):
                key, _, text = word.partition("=")
                found.setdefault(key, []).append(text)

        def values(key: str, low: float, high: float) -> list[float]:
            numbers = [_number(text, low, high) for text in found.get(key, [])]
            return [number for number in numbers if number is not None]

        temperatures, clocks = values("temp", -50_000, 200_000), values("clock", 1e3, 1e8)
        watts = self._watts(values)
        joules = self._add_energy(at_s, values, watts)
        bits = found.get("throttled", [""])[0].removeprefix("0x")
        self.readings.append(
            Reading(
                at_s,
                max(temperatures) / 1e3 if temperatures else None,
                1e3 * max(clocks) if clocks else None,
                int(bits, 16) if re.fullmatch(r"[0-9a-f]{1,8}", bits) else None,
                int(max(values("cooling", 0, 1e6), default=0)),
                int(sum(values("count", 0, 1e15))),
                joules,
                watts,
            )
        )

    def _watts(self, values: Values) -> float | None:
        if self._ranges:
            return None
        if any(key.startswith("rail.") for key in self._names):
            found = values(self._rail(), 0, 1e9)
            return found[0] / 1e6 if found else None
        rails = [rail["A"] * rail["V"] for rail in self._adc.values() if rail.keys() == {"A", "V"}]
        self._adc = {}
        return sum(rails) if rails else None

    def _add_energy(self, at_s: float, values: Values, watts: float | None) -> float | None:
        """Joules since the first reading; counters that start again at their range are seen through."""
        if self._ranges:
            for index, range_uj in self._ranges.items():
                found = values(f"energy.{index}", 0, 1e18)
                if not found:
                    return None
                before = self._last.get(index, found[0])
                step = found[0] - before if found[0] >= before else found[0] - before + range_uj
                self._joules += max(step, 0.0) / 1e6
                self._last[index] = found[0]
            return self._joules
        if watts is None:
            return None
        last = self.readings[-1] if self.readings else None
        if last is not None and last.watts is not None:
            self._joules += (watts + last.watts) / 2 * (at_s - last.at_s)
        return self._joules


class Sampler:
    """Runs the script beside whatever else is done on the board. Use it as a context manager.

    root: where /sys lies, for tests. Raises RemoteError if the board goes away.
    """

    def __init__(self, remote: Remote, period_s: float = 1.0, root: str = "") -> None:
        self.log = Log()
        self._buffer = b""
        self._ended = False
        self._process = remote.start(shell_argv(_SCRIPT, root, f"{period_s:g}"), silence_s=_START_S)

    def __enter__(self) -> Sampler:
        self._process.close_input()
        while not self.log.readings and not self._ended:
            self.collect(_START_S)
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.close()

    def collect(self, timeout_s: float = 0.0) -> None:
        """Takes what has come; waits up to timeout_s for something."""
        while not self._ended:
            try:
                piece = self._process.read(65536, timeout_s)
            except TimeoutError:
                break
            self._ended = not piece
            *lines, self._buffer = (self._buffer + piece).split(b"\n")
            self._buffer = self._buffer[-_LINE_CAP:]
            for line in lines:
                self.log.feed(line.decode("utf-8", "replace"))
            timeout_s = 0.0


def joules_between(readings: Sequence[Reading], start_s: float, end_s: float) -> float | None:
    """Energy between two times, interpolated; None outside of what was read, or where a counter has gaps."""
    curve = [(reading.at_s, reading.joules) for reading in readings if reading.joules is not None]
    if len(curve) < 2 or start_s < curve[0][0] or end_s > curve[-1][0] or end_s <= start_s:
        return None
    return _at(curve, end_s) - _at(curve, start_s)


def _at(curve: Sequence[tuple[float, float]], at_s: float) -> float:
    index = max(1, min(bisect.bisect_left([time for time, _ in curve], at_s), len(curve) - 1))
    (left, low), (right, high) = curve[index - 1], curve[index]
    return low if right == left else low + (high - low) * (at_s - left) / (right - left)


def slowed_down(readings: Sequence[Reading]) -> list[str]:
    """What slowed the processor down while these were read, in words; empty if nothing that can be seen did."""
    bits = 0
    for reading in readings:
        bits |= reading.throttled or 0
    found = [name for bit, name in BITS.items() if bits >> bit & 1]
    if any(reading.cooling for reading in readings):
        found.append("slowed down against heat")
    if readings and readings[-1].count > readings[0].count:
        found.append(f"{readings[-1].count - readings[0].count} throttling events")
    return found


def _number(text: str, low: float, high: float) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if low <= value <= high else None
