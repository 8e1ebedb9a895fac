#pragma once
#include <linux/time.h>
#include <sys/types.h>

struct tm {
    int tm_sec, tm_min, tm_hour, tm_mday, tm_mon, tm_year, tm_wday, tm_yday, tm_isdst;
    long tm_gmtoff;
    const char *tm_zone;
};

time_t time(time_t *now);
int clock_gettime(clockid_t clock, struct timespec *now);
struct tm *gmtime_r(const time_t *at, struct tm *parts);
struct tm *localtime_r(const time_t *at, struct tm *parts);
size_t strftime(char *text, size_t cap, const char *format, const struct tm *parts);
