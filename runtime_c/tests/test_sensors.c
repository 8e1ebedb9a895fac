/* What a board says of its heat, from trees that look like those of real ones. */
#include "posix.h"

#include "sensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "check.h"

static char root[] = "/tmp/sensors-XXXXXX";

static void put(const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *at = path + strlen(root) + 1; (at = strchr(at, '/')) != NULL; at++) {
        *at = '\0';
        (void)mkdir(path, 0700);
        *at = '/';
    }
    FILE *file = fopen(path, "w");
    CHECK(file != NULL);
    if (file != NULL) {
        fputs(text, file);
        fclose(file);
    }
}

static bool says(const char *json) {
    sensors s;
    buffer b = {0};
    sensors_read(&s, root);
    sensors_put(&s, &b);
    bool same = strcmp(b.data, json) == 0;
    if (!same) {
        fprintf(stderr, "%s\n", b.data);
    }
    buffer_free(&b);
    return same;
}

int main(void) {
    CHECK(mkdtemp(root) != NULL);
    CHECK(says("{\"temperature_c\":null,\"clock_hz\":null,\"max_clock_hz\":null,\"throttling\":null}"));
    put("sys/class/thermal/thermal_zone0/type", "battery\n");
    put("sys/class/thermal/thermal_zone0/temp", "71000\n");
    CHECK(says("{\"temperature_c\":71.0,\"clock_hz\":null,\"max_clock_hz\":null,\"throttling\":null}"));
    put("sys/class/thermal/thermal_zone1/type", "cpu-thermal\n"); /* the processor's goes before others' */
    put("sys/class/thermal/thermal_zone1/temp", "54250\n");
    put("sys/class/thermal/thermal_zone2/type", "soc-thermal\n");
    put("sys/class/thermal/thermal_zone2/temp", "rubbish\n");
    put("sys/class/thermal/thermal_zone3/type", "cpu-broken\n");
    put("sys/class/thermal/thermal_zone3/temp", "99999999999999999999\n");
    put("sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "1500000\n");
    put("sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq", "2400000\n");
    put("sys/devices/system/cpu/cpufreq/policy4/cpuinfo_max_freq", "2400000\n");
    CHECK(says("{\"temperature_c\":54.2,\"clock_hz\":2400000000,\"max_clock_hz\":2400000000,\"throttling\":null}"));
    put("sys/class/thermal/cooling_device0/type", "pwm-fan\n"); /* a fan slows nothing down */
    put("sys/class/thermal/cooling_device0/cur_state", "3\n");
    put("sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n");
    CHECK(says("{\"temperature_c\":54.2,\"clock_hz\":2400000000,\"max_clock_hz\":2400000000,\"throttling\":{\"now\":"
               "[\"under-voltage\",\"throttled\"],\"since_boot\":[\"under-voltage\",\"throttled\"]}}"));
    put("sys/devices/platform/soc/soc:firmware/get_throttled", "0\n");
    put("sys/class/thermal/cooling_device1/type", "cpufreq-cpu0\n");
    put("sys/class/thermal/cooling_device1/cur_state", "2\n");
    put("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "7\n");
    CHECK(says("{\"temperature_c\":54.2,\"clock_hz\":2400000000,\"max_clock_hz\":2400000000,\"throttling\":{\"now\":"
               "[\"slowed down against heat\"],\"since_boot\":[\"7 thermal events\"]}}"));
    return check_result();
}
