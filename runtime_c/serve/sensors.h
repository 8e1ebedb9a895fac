/* sensors.h: how hot the board is, how fast it runs and what slows it down, from /sys. */
#ifndef EDGELLM_RT_SENSORS_H
#define EDGELLM_RT_SENSORS_H

#include <stdint.h>

#include "buffer.h"

enum {
    SENSORS_BITS = 4, /* kinds of throttling that the firmware of a Raspberry Pi tells apart */
    SENSORS_MS = 500, /* what was read is good for so long */
};

/* What nobody tells is absent, never guessed. */
typedef struct sensors {
    double read_at; /* clock_ms; 0: never */
    bool has_temperature, has_clock, has_throttling;
    bool is_processors;         /* the temperature is, by the sensor's name */
    double temperature_c;       /* of the processor's hottest sensor, or the board's */
    uint64_t clock_hz, most_hz; /* of the fastest core; what it could be, 0 where that is not told */
    uint32_t bits;              /* get_throttled: now, and from bit 16 on since the board booted */
    uint64_t n_events;          /* thermal throttling counted by x86 processors since they booted */
    bool is_cooling;            /* the kernel keeps the clock down against heat */
} sensors;

/* Reads them anew. root: where sys/ lies, "" for this machine's. */
void sensors_read(sensors *s, const char *root);
/* As one JSON object. */
void sensors_put(const sensors *s, buffer *b);

#endif
