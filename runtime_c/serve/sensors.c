/* Sources: Linux' thermal sysfs API (temp in thousandths of a degree), its cpufreq documentation (frequencies in kHz),
 * and Raspberry Pi's documentation of vcgencmd get_throttled, whose bits its kernels give in a file, too. */
#include "posix.h"

#include "sensors.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

static const char names[SENSORS_BITS][18] = {"under-voltage", "clock capped", "throttled", "temperature limit"};

typedef void visitor(sensors *s, const char *path);

/* Visits every path that `pattern` stands for; stars end names, and are looked for from `from` on. (Android has glob
 * since API 28.) */
static void each(sensors *s, visitor *visit, const char *pattern, size_t from) {
    const char *star = strchr(pattern + from, '*');
    if (star == NULL) {
        visit(s, pattern);
        return;
    }
    const char *name = star;
    while (*name != '/') {
        name--;
    }
    char path[512];
    int n_folder = (int)(++name - pattern), n_name = (int)(star - name);
    snprintf(path, sizeof path, "%.*s", n_folder, pattern);
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        int n = snprintf(path, sizeof path, "%.*s%s%s", n_folder, pattern, entry->d_name, star + 1);
        if (strncmp(entry->d_name, name, (size_t)n_name) == 0 && n < (int)sizeof path) {
            each(s, visit, path, (size_t)n_folder + strlen(entry->d_name));
        }
    }
    if (folder != NULL) {
        closedir(folder);
    }
}

static void find(sensors *s, visitor *visit, const char *root, const char *pattern) {
    char path[512];
    if (snprintf(path, sizeof path, "%s/sys/%s", root, pattern) < (int)sizeof path) {
        each(s, visit, path, strlen(root));
    }
}

/* The first line of directory/name, or of directory where name is "". */
static bool read_line(const char *directory, const char *name, char *line, int cap) {
    char path[512];
    int n = snprintf(path, sizeof path, "%s%s", directory, name);
    FILE *file = n > 0 && (size_t)n < sizeof path ? fopen(path, "re") : NULL;
    bool good = file != NULL && fgets(line, cap, file) != NULL;
    if (file != NULL) {
        fclose(file);
    }
    return good;
}

static bool read_number(const char *directory, const char *name, int base, long long least, long long most,
                        long long *value) {
    char line[64], *end = line;
    if (!read_line(directory, name, line, sizeof line)) {
        return false;
    }
    *value = strtoll(line, &end, base);
    return end != line && *value >= least && *value <= most;
}

static bool is_of_processor(const char *type) {
    static const char marks[][5] = {"cpu", "CPU", "Cpu", "soc", "pkg", "core"};
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        if (strstr(type, marks[i]) != NULL) {
            return true;
        }
    }
    return false;
}

/* Of the processor's zones where any is named so, else of all. */
static void read_temperature(sensors *s, const char *zone) {
    char type[64] = "";
    long long value;
    bool is_own = read_line(zone, "/type", type, sizeof type) && is_of_processor(type);
    if (!read_number(zone, "/temp", 10, -50000, 200000, &value) || (s->is_processors && !is_own)) {
        return;
    }
    double here = (double)value / 1e3;
    if (!s->has_temperature || is_own > s->is_processors || here > s->temperature_c) {
        s->temperature_c = here;
    }
    s->has_temperature = true;
    s->is_processors = is_own;
}

static void read_clock(sensors *s, const char *policy) {
    long long khz;
    if (read_number(policy, "/scaling_cur_freq", 10, 1, 100000000, &khz)) {
        s->has_clock = true;
        s->clock_hz = s->clock_hz > (uint64_t)khz * 1000 ? s->clock_hz : (uint64_t)khz * 1000;
    }
    if (read_number(policy, "/cpuinfo_max_freq", 10, 1, 100000000, &khz)) {
        s->most_hz = s->most_hz > (uint64_t)khz * 1000 ? s->most_hz : (uint64_t)khz * 1000;
    }
}

static void read_firmware(sensors *s, const char *path) {
    long long value;
    if (read_number(path, "", 16, 0, UINT32_MAX, &value)) {
        s->has_throttling = true;
        s->bits = (uint32_t)value;
    }
}

static void read_cooling(sensors *s, const char *device) {
    char type[64];
    long long value;
    bool is_clock = read_line(device, "/type", type, sizeof type)
                    && (strstr(type, "cpufreq") != NULL || strncmp(type, "Processor", 9) == 0);
    if (is_clock && read_number(device, "/cur_state", 10, 0, INT32_MAX, &value)) {
        s->has_throttling = true;
        s->is_cooling = s->is_cooling || value > 0;
    }
}

static void read_events(sensors *s, const char *path) {
    long long value;
    if (read_number(path, "", 10, 0, INT32_MAX, &value)) {
        s->has_throttling = true;
        s->n_events += (uint64_t)value;
    }
}

void sensors_read(sensors *s, const char *root) {
    *s = (sensors){.read_at = clock_ms()};
    find(s, read_temperature, root, "class/thermal/thermal_zone*");
    find(s, read_clock, root, "devices/system/cpu/cpufreq/policy*");
    find(s, read_firmware, root, "devices/platform/soc*/soc*/get_throttled");
    find(s, read_cooling, root, "class/thermal/cooling_device*");
    find(s, read_events, root, "devices/system/cpu/cpu*/thermal_throttle/core_throttle_count");
}

/* One more of a list. */
static void put_name(buffer *b, const char *name) {
    buffer_print(b, "%s\"%s\"", b->data[b->n - 1] == '[' ? "" : ",", name);
}

static void put_names(const sensors *s, int shift, buffer *b) {
    buffer_put(b, "[", 1);
    for (int i = 0; i < SENSORS_BITS; i++) {
        if ((s->bits >> (i + shift) & 1) != 0) {
            put_name(b, names[i]);
        }
    }
    if (shift == 0 && s->is_cooling) {
        put_name(b, "slowed down against heat");
    }
    if (shift > 0 && s->n_events > 0) {
        char text[48];
        snprintf(text, sizeof text, "%" PRIu64 " thermal events", s->n_events);
        put_name(b, text);
    }
    buffer_put(b, "]", 1);
}

static void put_count(buffer *b, const char *key, bool is_there, uint64_t value) {
    buffer_print(b, ",\"%s\":", key);
    if (is_there) {
        buffer_print(b, "%" PRIu64, value);
    } else {
        buffer_print(b, "null");
    }
}

void sensors_put(const sensors *s, buffer *b) {
    if (s->has_temperature) {
        buffer_print(b, "{\"temperature_c\":%.1f", s->temperature_c);
    } else {
        buffer_print(b, "{\"temperature_c\":null");
    }
    put_count(b, "clock_hz", s->has_clock, s->clock_hz);
    put_count(b, "max_clock_hz", s->most_hz > 0, s->most_hz);
    buffer_print(b, ",\"throttling\":");
    if (s->has_throttling) {
        buffer_print(b, "{\"now\":");
        put_names(s, 0, b);
        buffer_print(b, ",\"since_boot\":");
        put_names(s, 16, b);
        buffer_put(b, "}", 1);
    } else {
        buffer_print(b, "null");
    }
    buffer_put(b, "}", 1);
}
